"""Packing: its files, which no interruption, cut-off write or broken file may change."""

import hashlib
import io
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
from fastadaad.data.datasets.packed import JOURNAL, SUMMARY
from fastadaad.data.statistics import channel_statistics
from fastadaad.runtime.files import TEMPORARY
from fastadaad.runtime.locks import locked

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
    """Files of a pack of `root`."""
    pack(root, tmp_path / "uninterrupted")
    return contents(tmp_path / "uninterrupted")


def refusal(root: Path, out: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        pack(root, out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class StoppedError(BaseException):
    """Like KeyboardInterrupt, not an Exception."""


def stop_at(monkeypatch, name: str, call: int) -> list:
    """Makes the function `name` of packing fail at its `call`-th call; returns the list of its calls' arguments."""
    function, calls = getattr(packing, name), []

    def stopping(*arguments):
        if len(calls) == call:
            raise StoppedError
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(packing, name, stopping)
    return calls


def interrupt(root: Path, out: Path, name: str, call: int, **options) -> None:
    """Packs up to the call that `stop_at` makes fail."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, name, call)
        with pytest.raises(StoppedError):
            pack(root, out, **options)


@pytest.mark.parametrize("center_share", [1.0, 0.7])
def test_a_pack_holds_resized_centers_labels_and_classes(root, tmp_path, center_share):
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


def test_the_number_of_threads_does_not_change_the_files(root, tmp_path, uninterrupted):
    pack(root, tmp_path / "out", num_workers=5)
    assert contents(tmp_path / "out") == uninterrupted


@pytest.mark.parametrize("file", range(len(TRAIN + TEST)))
def test_a_pack_stopped_at_any_file_resumes_with_the_missing_chunks(root, tmp_path, uninterrupted, file):
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


# The journal is written at the beginning and after each of the six chunks; then come two files of labels and pack.json.
NUM_WRITES = 1 + 6 + 3


@pytest.mark.parametrize("call", range(NUM_WRITES))
def test_a_pack_stopped_at_any_write_resumes(root, tmp_path, uninterrupted, call):
    out = tmp_path / "out"
    interrupt(root, out, "write_atomically", call)
    assert not (out / SUMMARY).exists()
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_pack_stopped_before_its_journal_is_deleted_is_complete(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        writes = stop_at(patch, "write_atomically", call=-1)
        pack(root, out)
    assert len(writes) == NUM_WRITES
    (out / JOURNAL).write_bytes(b"left by a process that was killed")
    pack(root, out)
    assert contents(out) == uninterrupted


@pytest.mark.parametrize("extra", [1, IMAGE_BYTES, 5 * IMAGE_BYTES + 7])
def test_bytes_that_the_journal_does_not_list_are_cut_off(root, tmp_path, uninterrupted, extra):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    with (out / "train_images.u8").open("ab") as file:
        file.write(b"x" * extra)
    (out / "test_images.u8").write_bytes(b"x" * extra)
    (out / f"{JOURNAL}.123{TEMPORARY}").write_bytes(b"{")
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_pack_stopped_before_its_first_write_begins_again(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{JOURNAL}.123{TEMPORARY}").write_bytes(b"{")
    pack(root, out)
    assert contents(out) == uninterrupted


@pytest.mark.parametrize("size", [0, 1, 4 * IMAGE_BYTES - 1])
def test_images_that_were_lost_are_named(root, tmp_path, size):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    os.truncate(out / "train_images.u8", size)
    before = contents(out)
    message = f"{out / 'train_images.u8'} has lost images: delete {out} and run fastadaad pack again"
    assert refusal(root, out) == message
    assert contents(out) == before


def test_a_pack_stopped_twice_resumes(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
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


@pytest.mark.slow
def test_a_killed_pack_resumes(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    program = KILLED.format(chunk_bytes=FILES_OF_CHUNK * IMAGE_BYTES, size=SIZE)
    done = subprocess.run([sys.executable, "-c", program, root, out], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / JOURNAL).exists()
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_finished_pack_is_not_changed(root, tmp_path, monkeypatch):
    out, printed = tmp_path / "out", io.StringIO()
    first = pack(root, out)
    stop_at(monkeypatch, "decode_resized", 0)
    again = packing.pack(
        load_dataset("folder", root, image_size=SIZE), out, num_workers=1, console=Console(file=printed, width=200)
    )
    assert again == first
    assert printed.getvalue() == f"{out} is complete already\n"


def test_other_files_or_settings_than_those_of_the_pack_are_refused(root, tmp_path):
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


def test_a_pack_resumes_after_its_images_were_moved(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    pack(root.rename(tmp_path / "moved"), out)
    assert contents(out) == uninterrupted


def test_a_folder_with_other_files_is_refused_and_not_changed(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("of years")
    assert refusal(root, out) == f"{out} holds something else: give another OUT"
    assert contents(out) == {"thesis.txt": b"of years"}


def test_two_processes_do_not_pack_into_one_folder(root, tmp_path, uninterrupted):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    with locked(out):
        assert f"{out} is being packed by another process" in refusal(root, out)
    pack(root, out)
    assert contents(out) == uninterrupted


def test_a_pack_that_another_process_finished_meanwhile_is_complete(root, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def locked_after_another_process(folder):
        monkeypatch.setattr(packing, "locked", locked)
        pack(root, out)
        return locked(folder)

    monkeypatch.setattr(packing, "locked", locked_after_another_process)
    decoded = stop_at(monkeypatch, "decode_resized", call=-1)
    pack(root, out)
    assert len(decoded) == len(TRAIN + TEST)  # once each


def test_a_broken_file_stops_the_pack_which_resumes_once_it_is_replaced(root, tmp_path, uninterrupted):
    out, broken = tmp_path / "out", root / "train" / "dog" / "c.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:60])
    message = refusal(root, out)
    assert message.startswith(f"{broken} cannot be decoded (")
    assert message.endswith(
        "): replace it, or add --skip-errors to leave such files out; then run the command again to resume"
    )
    assert (out / "train_images.u8").stat().st_size == 4 * IMAGE_BYTES
    broken.write_bytes(good)
    pack(root, out)
    assert contents(out) == uninterrupted


def test_broken_files_can_be_skipped(root, tmp_path):
    (root / "train" / "cat" / "a.png").write_bytes(b"")
    for name in ("b.png", "c.png"):  # one whole chunk, and one file of another
        (root / "train" / "dog" / name).write_bytes(b"<!DOCTYPE html>")
    (root / "test" / "dog" / "e.jpg").unlink()
    (root / "test" / "dog" / "e.jpg").symlink_to("nowhere")
    out, again = tmp_path / "out", tmp_path / "again"
    refusal(root, out)  # begun without skipping
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


def test_broken_files_are_skipped_after_an_interruption_too(root, tmp_path):
    for name in ("a.png", "b.png"):  # one in a chunk that is packed before the interruption
        (root / "train" / "cat" / name).write_bytes(b"")
    (root / "train" / "dog" / "d.png").write_bytes(b"")
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack(root, whole, on_error="skip")
    interrupt(root, out, "decode_resized", 5, on_error="skip")
    pack(root, out, on_error="skip")
    assert contents(out) == contents(whole)


def test_a_split_without_a_readable_image_is_refused(root, tmp_path):
    for name in TEST:
        (root / "test" / name).write_bytes(b"")
    message = refusal(root, tmp_path / "out", on_error="skip")
    assert message == f"{root / 'test'} holds no image that can be decoded: {root / 'test' / TEST[0]} is empty"


@pytest.mark.parametrize(
    ("image_size", "limit"),
    [(SIZE, 100), (SIZE, 2950), (64, 30_000)],
    ids=["first journal", "later journal", "images"],
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
    assert (out / JOURNAL).exists() == (limit > 100)
    pack(root, out, image_size=image_size)
    assert contents(out) == contents(whole)


def test_a_disk_that_is_too_small_is_reported_before_anything_is_decoded(root, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=int(9.5 * IMAGE_BYTES))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert "out needs 0.0 GB more and its disk has 0.0 GB: make room" in refusal(root, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10 * IMAGE_BYTES))
    pack(root, tmp_path / "out")


def changed(*names: str, value: object):
    """Returns a function that sets one entry of a journal."""

    def change(facts: dict) -> dict:
        entry = facts
        for name in names[:-1]:
            entry = entry[name]
        entry[names[-1]] = value
        return facts

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: [],
        lambda facts: {},
        lambda facts: 3,
        changed("origin", value=None),
        changed("origin", "image_size", value="4"),
        changed("splits", value=["train"]),
        changed("splits", "train", value=None),
        changed("splits", "train", value={"num_images": 1}),
        changed("splits", "train", "num_images", value=-1),
        changed("splits", "train", "num_images", value="1"),
        changed("splits", "train", "chunk_images", value=[1e99, 2]),
        changed("splits", "train", "chunk_sha256", value=[]),
        changed("splits", "test", "skipped", value=["a"]),
        changed("counts", value=[[1] * 255] * 3),
        changed("counts", value=[[1] * 256] * 3),
        changed("counts", value=[[2**70] * 256] * 3),
        changed("counts", value=[["1"] * 256] * 3),
        changed("counts", value=3),
    ],
)
def test_a_damaged_journal_is_named(root, tmp_path, damage):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    (out / JOURNAL).write_text(json.dumps(damage(json.loads((out / JOURNAL).read_text()))))
    assert_refused_as_damaged(root, out)


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff"], ids=["empty", "cut off", "nested", "binary"])
def test_a_journal_that_is_not_json_is_named(root, tmp_path, content):
    out = tmp_path / "out"
    interrupt(root, out, "decode_resized", 5)
    (out / JOURNAL).write_bytes(content)
    assert_refused_as_damaged(root, out)


def assert_refused_as_damaged(root: Path, out: Path) -> None:
    before = contents(out)
    message = refusal(root, out)
    assert message.startswith(f"{out / JOURNAL} cannot be read (")
    assert message.endswith(f"): delete {out} and run fastadaad pack again")
    assert contents(out) == before
