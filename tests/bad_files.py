"""Truncated, damaged, foreign and malicious files, in one folder for a whole table of tests."""

import gzip
import json
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from data.image_trees import write_tree
from tiny_runs import save_teacher, tiny_run
from torch import nn

from fastadaad import load_model
from fastadaad.models.weights_writing import save_weights
from fastadaad.run_config import RunConfig

WEB_PAGE = b"<!DOCTYPE html>\n<html><title>404 Not Found</title></html>\n"
IDX_FILES = {
    "train-images-idx3-ubyte": (8, 28, 28),
    "train-labels-idx1-ubyte": (8,),
    "t10k-images-idx3-ubyte": (4, 28, 28),
    "t10k-labels-idx1-ubyte": (4,),
}

ENCODE = b"c_codecs\nencode\n"
ENCODED = b"X\4\0\0\0aaaa"
# Pickles that fill the memory or take quadratic time without running code.
PICKLED_CALLS = {
    "hex.pt": 25 * ENCODE + ENCODED + 25 * b"X\3\0\0\0hex\x86R",
    "punycode.pt": ENCODE + ENCODED + b"X\x08\0\0\0punycode\x86R",
    "again.pt": b"(" + ENCODED + b"q\1X\6\0\0\0latin1q\2" + 9 * (ENCODE + b"h\1h\2\x86R") + b"t",
    "device.pt": b"ctorch\ndevice\nX\xff\0\0\0" + 255 * b"c" + b"\x85R",
    "methods.pt": b"ccollections\nOrderedDict\n)R}X\5\0\0\0itemsK\1sb",
    "collide.pt": b"}("
    + b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(2**15))
    + b"u",
}


class Code:
    """Creates the folder code-was-run if it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("code-was-run",)


def write_bad_files(folder: Path) -> RunConfig:
    """Writes all bad files and some good ones to `folder`; returns the configuration of a valid run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = save_teacher(folder / "teacher.safetensors")
        save_teacher(folder / "other_teacher.safetensors", seed=1)
        _write_weights(folder)
    run = tiny_run(method="adaad", teacher=teacher)
    _write_npz(folder)
    _write_idx(folder)
    _write_image_folders(folder)
    _write_runs(folder, run)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("not a recipe\n")
    for name in ("full.csv", "full.json", "full.png"):
        (folder / name).symlink_to("/dev/full")
    return run


def _write_weights(folder: Path) -> None:
    """Writes bad files of weights, named after the fault."""
    good = (folder / "teacher.safetensors").read_bytes()
    state_dict = load_model("cnn-6-s1", in_channels=1).state_dict()
    torch.save(state_dict, folder / "whole.pt")
    saved = (folder / "whole.pt").read_bytes()
    for name, content in {
        "page.safetensors": WEB_PAGE,
        "page.pt": WEB_PAGE,
        "empty.safetensors": b"",
        "empty.pt": b"",
        "cut.safetensors": good[:-7],
        "cut.pt": saved[: len(saved) // 2],
        "flipped.safetensors": bytes([*good[:7], good[7] ^ 0x40, *good[8:]]),  # in the length of its header
        "flipped.pt": saved.replace(b"PK\x01\x02", b"PK\x01\x42"),
        "text.pt": b"to be done\n",
        "renamed.safetensors": gzip.compress(saved, mtime=0),
    }.items():
        (folder / name).write_bytes(content)
    torch.save({"state_dict": Code()}, folder / "code.pt")
    for name, calls in PICKLED_CALLS.items():
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member, content in (("data.pkl", b"\x80\x02" + calls + b"."), ("version", b"3\n")):
                archive.writestr(f"w/{member}", content)
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save({"epoch": 3}, folder / "no_weights.pt")
    torch.save(nn.Linear(2, 2), folder / "module.pt")
    (folder / "folder.pt").mkdir()
    save_weights(folder / "wider.safetensors", load_model("cnn-8-s1", in_channels=1))
    save_weights(folder / "hundred.safetensors", load_model("cnn-6-s1", num_classes=100, in_channels=1))
    save_weights(folder / "colour.safetensors", load_model("cnn-6-s1"))
    broken = load_model("cnn-6-s1", in_channels=1)
    nn.init.constant_(broken.fc.weight, torch.nan)
    save_weights(folder / "nan.safetensors", broken)
    torch.save({name: tensor for name, tensor in state_dict.items() if name != "fc.bias"}, folder / "name_less.pt")
    torch.save(state_dict | {"head.weight": torch.zeros(1)}, folder / "name_more.pt")


def _write_npz(folder: Path) -> None:
    """Writes bad files of extra images for the digits."""
    images, labels = np.zeros((6, 8, 8, 1), np.uint8), np.arange(6)
    np.savez(folder / "good.npz", image=images, label=labels)
    good = (folder / "good.npz").read_bytes()
    (folder / "page.npz").write_bytes(WEB_PAGE)
    (folder / "empty.npz").write_bytes(b"")
    (folder / "cut.npz").write_bytes(good[: len(good) // 2])
    np.savez(folder / "no_labels.npz", image=images)
    np.savez(folder / "colour.npz", image=np.zeros((6, 8, 8, 3), np.uint8), label=labels)
    np.savez(folder / "floats.npz", image=images / 255, label=labels)
    np.savez(folder / "label_10.npz", image=images, label=labels + 5)
    np.savez(folder / "label_less.npz", image=images, label=labels[1:])
    np.savez(folder / "objects.npz", image=images, label=np.array([Code()] * 6, dtype=object))
    with zipfile.ZipFile(folder / "huge.npz", "w") as archive:
        for name, shape in (("image", (2**40, 8, 8, 1)), ("label", (2**40,))):
            with archive.open(f"{name}.npy", "w") as file:
                kind = "|u1" if name == "image" else "<i8"
                np.lib.format.write_array_header_1_0(
                    file, {"descr": kind, "fortran_order": False, "shape": shape}
                )  # fmt: skip


def _write_idx(folder: Path) -> None:
    """Writes data sets like Fashion-MNIST, each with one bad file."""
    bad: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
        "idx_page": ("train-images-idx3-ubyte", lambda content: WEB_PAGE),
        "idx_cut": ("train-images-idx3-ubyte", lambda content: content[:-1]),
        "idx_long": ("t10k-images-idx3-ubyte", lambda content: content + b"\0"),
        "idx_header": ("train-labels-idx1-ubyte", lambda content: content[:6]),
        "idx_foreign": ("t10k-labels-idx1-ubyte", lambda content: b"\x89PNG" + content[4:]),
        "idx_label_10": ("train-labels-idx1-ubyte", lambda content: content[:-1] + b"\x0a"),
        "idx_huge": ("train-images-idx3-ubyte", lambda content: content[:4] + struct.pack(">I", 2**31) + content[8:]),
        "idx_gzip": ("t10k-images-idx3-ubyte", lambda content: gzip.compress(content)[:-20]),
    }
    for name, (changed, change) in bad.items():
        (folder / name).mkdir()
        for file_name, shape in IDX_FILES.items():
            content = struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + bytes(np.prod(shape))
            (folder / name / file_name).write_bytes(change(content) if file_name == changed else content)


def _write_image_folders(folder: Path) -> None:
    """Writes folders of image files and packs, each with one fault."""
    write_tree(folder / "images")
    (write_tree(folder / "page_images") / "train" / "cat" / "a.png").write_bytes(WEB_PAGE)
    (write_tree(folder / "empty_image") / "train" / "dog" / "a.png").write_bytes(b"")
    (write_tree(folder / "empty_class") / "train" / "emu").mkdir()
    other = write_tree(folder / "other_classes")
    (other / "test" / "dog").rename(other / "test" / "wolf")
    (folder / "no_test" / "train").mkdir(parents=True)
    (folder / "flat" / "train").mkdir(parents=True)
    (folder / "flat" / "test").mkdir()
    (folder / "flat" / "train" / "a.png").write_bytes((folder / "images" / "train" / "cat" / "a.png").read_bytes())
    for name, content in {
        "pack_page": WEB_PAGE,
        "pack_list": b"[1, 2]",
        "pack_cut": b'{"origin": {"image_size": 8,',
        "pack_huge": b'{"origin": {"image_size": 1e300}}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "pack.json").write_bytes(content)
    (folder / "pack_begun").mkdir()
    (folder / "pack_begun" / "packing.json").write_bytes(b"")
    (folder / "pack_deep").mkdir()
    (folder / "pack_deep" / "pack.json").write_bytes(b"[" * 100_000)


def _write_runs(folder: Path, run: RunConfig) -> None:
    """Writes run folders with a bad configuration, or with a good one and bad weights."""
    good = asdict(replace(run, student=replace(run.student, name="cnn-6-s1")))
    for name, content in {
        "run_page": WEB_PAGE,
        "run_empty": b"",
        "run_cut": json.dumps(good).encode()[:-9],
        "run_list": b"[]",
        "run_deep": b"[" * 100_000,
        "run_unknown": json.dumps(good | {"colour": "red"}).encode(),
        "run_code": json.dumps(good | {"method_options": {"class_path": "os.system"}}).encode(),
        "run_radius": json.dumps(good | {"inner": {"threat_model": {"norm": "linf", "epsilon": 8}}}).encode(),
        "run_bytes": b"\xff\xfe\x00",
        "run_twice": json.dumps(good).encode()[:-1] + b', "seed": 1}',
        "run_nan": json.dumps(good | {"seed": float("nan")}).encode(),
        "run_huge": b" " * 2**20 + json.dumps(good).encode(),
        "run_giant": json.dumps(good | {"student": {"name": "wrn-70-16"}}).encode(),
        "run_without_weights": json.dumps(good).encode(),
        "run_page_weights": json.dumps(good).encode(),
        "run_other_weights": json.dumps(good).encode(),
    }.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_bytes(content)
    (folder / "run_folder").mkdir()
    (folder / "run_folder" / "config.json").mkdir()
    (folder / "run_page_weights" / "best.safetensors").write_bytes(WEB_PAGE)
    for name in ("run_other_weights", "run_giant"):
        save_weights(folder / name / "best.safetensors", load_model("cnn-8-s1", in_channels=1))
