"""Packing: what it writes, and that no interruption, damage of the tail or broken file changes that or loses more."""

import fcntl
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import TEST, TRAIN, write_tree
from PIL import Image
from rich.console import Console
from torchvision.transforms.v2 import functional as TF

from fastadaad.data import DataError, load_dataset, packing
from fastadaad.data.datasets.packed import LOG, SUMMARY
from fastadaad.data.statistics import channel_statistics

SIZE = 4
IMAGE_BYTES = 3 * SIZE**2
FILES_OF_CHUNK = 2


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(packing, "CHUNK_BYTES", FILES_OF_CHUNK * IMAGE_BYTES)


@pytest.fixture
def root(tmp_path) -> Path:
    return write_tree(tmp_path / "images")


def pack(root: Path, out: Path, *, num_workers: int = 1, image_size: int = SIZE, **options):
    dataset = load_dataset("folder", root, image_size=image_size, **options)
    return packing.pack(dataset, out, num_workers=num_workers, console=Console(file=io.StringIO()))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def uninterrupted(root, tmp_path) -> dict[str, bytes]:
    """What a pack of `root` holds."""
    pack(root, tmp_path / "uninterrupted")
    return contents(tmp_path / "uninterrupted")


def refusal(root: Path, out: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        pack(root, out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class StoppedError(BaseException):
    """As KeyboardInterrupt: not an Exception."""


def stop_at(monkeypatch, name: str, call: int) -> list:
    """Let the function `name` of packing fail at its `call`-th call; returns the calls' arguments, as they come."""
    function, calls = getattr(packing, name), []

    def stopping(*arguments):
        if len(calls) == call:
            raise StoppedError
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(packing, name, stopping)
    return calls


def interrupt(root: Path, out: Path, name: str, call: int, **options) -> None:
    """Pack as far as `stop_at` lets it."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(StoppedError):
            pack(root, out, **options)


@pytest.mark.parametrize("center_share", [1.0, 0.7])
def test_a_pack_holds_the_resized_middles_labels_and_classes(root, tmp_path, center_share):
    out = tmp_path / "out"
    packed = pack(root, out, center_share=center_share)
    for split, names, labels in (("train", TRAIN, [0] * 3 + [1] * 4), ("test", TEST, [0, 1, 1])):
        images = np.fromfile(out / f"{split}_images.u8", np.uint8).reshape(-1, SIZE, SIZE, 3)
        for name, pixels in zip(names, images, strict=True):
            image = Image.open(root / split / name)
            side = round(center_share * min(image.size))
            corner = (image.height - side) // 2, (image.width - side) // 2
            assert np.array_equal(pixels, np.asarray(TF.resized_crop(image, *corner, side, side, [SIZE, SIZE]))), name
        assert np.load(out / f"{split}_labels.npy").tolist() == labels
    assert packed.class_names == ("cat", "dog")


def test_checksums_and_statistics_are_those_of_the_files(root, tmp_path):
    out = tmp_path / "out"
    packed = pack(root, out)
    summary = json.loads((out / SUMMARY).read_text())
    for split, num_images in (("train", 7), ("test", 3)):
        facts = summary["splits"][split]
        images = (out / f"{split}_images.u8").read_bytes()
        assert facts["num_images"] == num_images == len(images) / IMAGE_BYTES
        assert facts["labels_sha256"] == hashlib.sha256((out / f"{split}_labels.npy").read_bytes()).hexdigest()
        step = FILES_OF_CHUNK * IMAGE_BYTES
        parts = [images[start : start + step] for start in range(0, len(images), step)]
        assert facts["chunk_images"] == [len(part) / IMAGE_BYTES for part in parts]
        assert facts["chunk_sha256"] == [hashlib.sha256(part).hexdigest() for part in parts]
    pixels = np.fromfile(out / "train_images.u8", np.uint8).reshape(-1, 3)
    assert packed.mean == pytest.approx(pixels.mean(0) / 255, rel=1e-12)
    assert packed.std == pytest.approx(pixels.std(0) / 255, rel=1e-12)
    assert (packed.mean, packed.std) == channel_statistics(torch.from_numpy(pixels).view(-1, SIZE, SIZE, 3))


def test_the_number_of_threads_does_not_matter(root, tmp_path, uninterrupted):
    pack(root, tmp_path / "out", num_workers=5)
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("file", range(len(TRAIN + TEST)))
def test_stopped_at_any_file_it_goes_on_with_what_is_not_packed(root, tmp_path, uninterrupted, file):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", file)
    with pytest.MonkeyPatch.context() as patch:
        decoded = stop_at(patch, "decode_resized", call=-1)
        pack(root, out)
    in_train = min(file, len(TRAIN))
    whole_chunks = in_train // FILES_OF_CHUNK * FILES_OF_CHUNK if file < len(TRAIN) else len(TRAIN)
    whole_chunks += (file - in_train) // FILES_OF_CHUNK * FILES_OF_CHUNK
    assert len(decoded) == len(TRAIN + TEST) - whole_chunks
    assert contents(out) == uninterrupted


@pytest.mark.parametrize("call", range(3))
def test_stopped_at_any_of_the_last_files_it_goes_on(root, tmp_path, uninterrupted, call):
    out = tmp_path / "out"
    interrupt(root, out, "write_atomically", call)
    assert not (out / SUMMARY).exists()
    pack(root, out)
    assert contents(out) == uninterrupted


def test_stopped_before_its_log_is_deleted_it_is_complete(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    pack(root, out)
    (out / LOG).write_bytes(b"of a process that was killed")
    pack(root, out)
    assert contents(out) == uninterrupted


def test_whatever_part_of_the_files_reached_the_disk_it_goes_on(root, tmp_path, uninterrupted):
    written = tmp_path / "written"
    interrupt(root, written, "write_atomically", 0)
    log, images = (written / LOG).read_bytes(), (written / "train_images.u8").read_bytes()
    ends = [index + 1 for index, byte in enumerate(log) if byte == ord("\n")]
    log_sizes = sorted({0, 1, *ends, *(end - 1 for end in ends), *(end + 5 for end in ends[:-1])})
    image_sizes = (0, 1, IMAGE_BYTES, 2 * IMAGE_BYTES, 5 * IMAGE_BYTES + 7, len(images))
    out = tmp_path / "out"
    for log_size, image_size in itertools.product(log_sizes, image_sizes):
        shutil.copytree(written, out)
        (out / LOG).write_bytes(log[:log_size])
        (out / "train_images.u8").write_bytes(images[:image_size])
        pack(root, out)
        assert contents(out) == uninterrupted, (log_size, image_size)
        shutil.rmtree(out)


def test_killed_twice_it_goes_on(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    os.truncate(out / LOG, (out / LOG).stat().st_size - 20)  # as if killed while it wrote the second chunk's line
    interrupt(root, out, "decode_resized", 3)
    pack(root, out)
    assert contents(out) == uninterrupted


KILLED = """
import os, signal, sys
from pathlib import Path
from rich.console import Console
from fastadaad.data import load_dataset, packing

packing.CHUNK_BYTES = {chunk_bytes}
decode_resized, left = packing.decode_resized, [5]

def killing(images, index):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode_resized(images, index)

packing.decode_resized = killing
dataset = load_dataset("folder", sys.argv[1], image_size={size})
packing.pack(dataset, Path(sys.argv[2]), num_workers=1, console=Console())
"""


def test_killed_it_goes_on(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    program = KILLED.format(chunk_bytes=FILES_OF_CHUNK * IMAGE_BYTES, size=SIZE)
    done = subprocess.run([sys.executable, "-c", program, root, out], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / LOG).exists()
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_finished_pack_is_left_as_it_is(root, tmp_path, monkeypatch):
    out, told = tmp_path / "out", io.StringIO()
    first = pack(root, out)
    stop_at(monkeypatch, "decode_resized", 0)
    again = packing.pack(
        load_dataset("folder", root, image_size=SIZE), out, num_workers=1, console=Console(file=told, width=200)
    )
    assert again == first
    assert told.getvalue() == f"{out} is complete already\n"


def test_other_files_or_settings_are_refused_begun_or_finished(root, tmp_path):
    begun, finished = tmp_path / "begun", tmp_path / "finished"
    interrupt(root, begun, "decode_resized", 5)
    pack(root, finished)
    fewer = shutil.copytree(root, tmp_path / "fewer")
    (fewer / "train" / "dog" / "b.png").unlink()
    renamed = shutil.copytree(root, tmp_path / "renamed")
    for split in ("train", "test"):
        (renamed / split / "dog").rename(renamed / split / "duck")
    for out in (begun, finished):
        before, remedy = contents(out), f": give another OUT, or delete {out}"
        assert refusal(root, out, image_size=5) == f"{out} was begun with image_size 4, not 5{remedy}"
        assert refusal(root, out, center_share=0.5) == f"{out} was begun with center_share 1.0, not 0.5{remedy}"
        assert refusal(fewer, out) == f"{out} was begun with other files{remedy}"
        assert refusal(renamed, out) == f"{out} was begun with other files{remedy}"
        assert contents(out) == before


def test_a_tree_that_was_moved_is_gone_on_with(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    pack(root.rename(tmp_path / "moved"), out)
    assert contents(out) == uninterrupted


def test_a_folder_of_something_else_is_left_alone(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("of years")
    assert refusal(root, out) == f"{out} holds something else: give another OUT"
    assert contents(out) == {"thesis.txt": b"of years"}


def test_two_processes_do_not_pack_into_one_folder(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    with (out / LOG).open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert f"{out} is being packed by another process" in refusal(root, out)
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_pack_that_another_process_finished_meanwhile_is_left_alone(root, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def finish_elsewhere(folder):
        monkeypatch.undo()
        monkeypatch.setattr(packing, "CHUNK_BYTES", FILES_OF_CHUNK * IMAGE_BYTES)
        pack(root, out)

    monkeypatch.setattr(packing, "_prepare", finish_elsewhere)
    assert f"{out} was finished by another process just now" in refusal(root, out)
    finished = contents(out)
    pack(root, out)
    assert contents(out) == {name: content for name, content in finished.items() if name != LOG}


def test_a_broken_file_stops_it_and_once_replaced_it_goes_on(root, tmp_path, uninterrupted):
    out, broken = tmp_path / "out", root / "train" / "dog" / "c.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:60])
    message = refusal(root, out)
    assert message.startswith(f"{broken} cannot be decoded (")
    assert message.endswith(
        "): replace it, or add --skip-errors to leave such files out; then run the command again, and it goes on where "
        "it stopped"
    )
    assert (out / "train_images.u8").stat().st_size == 4 * IMAGE_BYTES
    broken.write_bytes(good)
    pack(root, out)
    assert contents(out) == uninterrupted


def test_broken_files_can_be_left_out(root, tmp_path):
    (root / "train" / "cat" / "a.png").write_bytes(b"")
    for name in ("b.png", "c.png"):  # one whole chunk, and a part of another
        (root / "train" / "dog" / name).write_bytes(b"<!DOCTYPE html>")
    (root / "test" / "dog" / "e.jpg").unlink()
    (root / "test" / "dog" / "e.jpg").symlink_to("nowhere")
    out, again = tmp_path / "out", tmp_path / "again"
    refusal(root, out)  # begun without leaving out
    packed = pack(root, out, on_error="skip")
    pages = {
        f"dog/{name}": f"{root / 'train' / 'dog' / name} is a web page, not an image" for name in ("b.png", "c.png")
    }
    assert packed.splits["train"].skipped == {"cat/a.png": f"{root / 'train/cat/a.png'} is empty"} | pages
    assert packed.splits["test"].skipped == {"dog/e.jpg": f"{root / 'test/dog/e.jpg'} does not exist"}
    assert np.load(out / "train_labels.npy").tolist() == [0, 0, 1, 1]
    assert np.load(out / "test_labels.npy").tolist() == [0, 1]
    assert json.loads((out / SUMMARY).read_text())["splits"]["train"]["skipped"] == packed.splits["train"].skipped

    for path in list(packed.splits["train"].skipped):
        (root / "train" / path).unlink()
    (root / "test" / "dog" / "e.jpg").unlink()
    without = pack(root, again)
    for name in ("train_images.u8", "train_labels.npy", "test_images.u8", "test_labels.npy"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    assert (packed.mean, packed.std) == (without.mean, without.std)


def test_broken_files_are_left_out_after_an_interruption_too(root, tmp_path):
    for name in ("a.png", "b.png"):  # one in a chunk that is packed before the interruption
        (root / "train" / "cat" / name).write_bytes(b"")
    (root / "train" / "dog" / "d.png").write_bytes(b"")
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack(root, whole, on_error="skip")
    interrupt(root, out, "decode_resized", 5, on_error="skip")
    pack(root, out, on_error="skip")
    assert contents(out) == contents(whole)


def test_a_split_of_which_nothing_can_be_decoded_is_refused(root, tmp_path):
    for name in TEST:
        (root / "test" / name).write_bytes(b"")
    message = refusal(root, tmp_path / "out", on_error="skip")
    assert message == f"{root / 'test'} holds no image that can be decoded: {root / 'test' / TEST[0]} is empty"


@pytest.mark.parametrize(
    ("image_size", "limit"),
    [(SIZE, 100), (SIZE, 2000), (SIZE, 10_000), (64, 30_000)],
    ids=["first line of the log", "line of a chunk", "line of a later chunk", "images"],
)
def test_a_write_that_fails_is_one_line_and_loses_nothing(root, tmp_path, image_size, limit):
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack(root, whole, image_size=image_size)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        message = refusal(root, out, image_size=image_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{out} cannot be written (File too large): make it possible, then run the command again" in message
    pack(root, out, image_size=image_size)
    assert contents(out) == contents(whole)


def test_a_disk_that_is_too_small_is_told_before_anything_is_decoded(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(9.5 * IMAGE_BYTES))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "out needs 0.0 GB more and its disk has 0.0 GB: make room" in refusal(root, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10 * IMAGE_BYTES))
    pack(root, tmp_path / "out")


def changed(line: bytes, **facts: object) -> bytes:
    return json.dumps(json.loads(line) | facts).encode() + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda first, second: [first, b"x" + second],
        lambda first, second: [b"[]\n", second],
        lambda first, second: [b"[" * 100_000 + b"\n", second],
        lambda first, second: [first, b"{}\n"],
        lambda first, second: [first, b"[1]\n"],
        lambda first, second: [first, changed(second, split="val")],
        lambda first, second: [first, changed(second, split=["train"])],
        lambda first, second: [first, changed(second, chunk=None)],
        lambda first, second: [first, changed(second, chunk={"num_images": 1})],
        lambda first, second: [first, changed(second, chunk=json.loads(second)["chunk"] | {"num_images": -1})],
        lambda first, second: [first, changed(second, chunk=json.loads(second)["chunk"] | {"num_images": "1"})],
        lambda first, second: [first, changed(second, chunk=json.loads(second)["chunk"] | {"num_images": 1e99})],
        lambda first, second: [first, changed(second, counts=[[1] * 255] * 3)],
        lambda first, second: [first, changed(second, counts=[[2**70] * 256] * 3)],
        lambda first, second: [first, changed(second, counts=[["1"] * 256] * 3)],
        lambda first, second: [first, changed(second, counts=3)],
    ],
)
def test_a_damaged_log_is_named(root, tmp_path, damage):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    first, second, *rest = (out / LOG).read_bytes().splitlines(keepends=True)
    (out / LOG).write_bytes(b"".join([*damage(first, second), *rest]))
    assert refusal(root, out) == f"{out / LOG} is damaged: delete {out} and begin anew"
