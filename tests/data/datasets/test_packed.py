"""Reading a pack: its images and labels, that its files are never written, and each kind of damage."""

import io
import json
import math
import os
import pickle
import warnings
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import write_tree
from rich.console import Console

from fastadaad.data import Augmentation, DataError, Dataset, ResidentPipeline, Sampling, load_dataset, packing
from fastadaad.data.datasets.packed import FORMAT, JOURNAL, SUMMARY, load_packed, read_pack, verify_pack
from fastadaad.data.datasets.source import Source
from fastadaad.data.statistics import channel_statistics
from fastadaad.runtime.untrusted_files import SUMMARY_BYTES

SIZE = 8
IMAGE_BYTES = 3 * SIZE**2


@pytest.fixture
def out(tmp_path, monkeypatch) -> Path:
    """Writes a pack of seven training images in chunks of three, one more skipped, and three test images."""
    monkeypatch.setattr(packing, "CHUNK_BYTES", 3 * IMAGE_BYTES)
    root = write_tree(tmp_path / "images")
    (root / "train" / "cat" / "broken.png").write_bytes(b"")
    dataset = load_dataset("folder", root, image_size=SIZE, on_error="skip")
    packing.pack(dataset, tmp_path / "out", num_workers=1, console=Console(file=io.StringIO()))
    return tmp_path / "out"


def load(folder: Path) -> Dataset:
    return load_packed(Source(root=folder))


def array(folder: Path, split: str) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(folder / f"{split}_images.u8", np.uint8)).view(-1, SIZE, SIZE, 3)


def test_images_labels_classes_and_statistics_are_those_of_the_pack(out):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that are not writable
        dataset = load(out)
    assert torch.equal(dataset.train_images, array(out, "train"))
    assert torch.equal(dataset.test_images, array(out, "test"))
    assert dataset.train_labels.tolist() == [0] * 3 + [1] * 4
    assert dataset.test_labels.tolist() == [0, 1, 1]
    assert dataset.train_labels.dtype == torch.int64
    assert (dataset.name, dataset.class_names) == ("packed", ("cat", "dog"))
    assert dataset.statistics == channel_statistics(array(out, "train"))
    ((name, reason),) = dataset.skipped.items()
    assert (name, reason.rpartition("/")[2]) == (Path("train/cat/broken.png"), "broken.png is empty")


def test_changes_of_the_images_do_not_reach_the_file(out):
    before = (out / "train_images.u8").read_bytes()
    images = load(out).train_images
    images.fill_(7)
    assert images.unique().tolist() == [7]
    assert (out / "train_images.u8").read_bytes() == before
    assert torch.equal(load(out).train_images, array(out, "train"))


def test_the_resident_engine_reads_a_pack_as_an_array(out):
    options = {"sampling": Sampling(batch_size=3, seed=2), "augmentation": Augmentation(padding=2, flip=True)}
    dataset = load(out)
    packed = list(ResidentPipeline(dataset.train_images, dataset.train_labels, **options).epoch(1))
    from_array = list(ResidentPipeline(array(out, "train"), dataset.train_labels, **options).epoch(1))
    assert len(packed) == 3
    for (x_natural, labels), (x_natural_array, labels_array) in zip(packed, from_array, strict=True):
        assert torch.equal(x_natural, x_natural_array)
        assert torch.equal(labels, labels_array)


def test_a_pack_may_be_larger_than_the_memory(out):
    facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    memory = 1024 * sum(int(facts[name].split()[0]) for name in ("MemTotal", "SwapTotal"))
    size = math.isqrt(2 * memory // 3 // 3)  # side of each of the three test images
    change_summary(out, lambda summary: summary["origin"].update(image_size=size))
    for split, num_images in (("train", 7), ("test", 3)):
        os.truncate(
            out / f"{split}_images.u8", 3 * num_images * size**2
        )  # a sparse file, which takes no space on the disk
    images = load(out).test_images
    assert images.nbytes > 1.9 * memory
    images[2, -1, -1, -1] = 5
    assert images[2, -1, -1].tolist() == [0, 0, 5]


def change_summary(out: Path, change: Callable[[dict], object]) -> None:
    summary = json.loads((out / SUMMARY).read_text())
    change(summary)
    (out / SUMMARY).write_text(json.dumps(summary))


def write_labels(out: Path, labels: np.ndarray) -> None:
    """Writes test labels with their checksum."""
    np.save(out / "test_labels.npy", labels)
    checksum = sha256((out / "test_labels.npy").read_bytes()).hexdigest()
    change_summary(out, lambda summary: summary["splits"]["test"].update(labels_sha256=checksum))


def change_byte(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


# Damage of a pack, and the message; {out}: folder of the pack.
REMEDY = ": delete {out} and run fastadaad pack again"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no summary": (
        lambda out: (out / SUMMARY).unlink(),
        "{out}/pack.json does not exist: set data.root=FOLDER to a folder that fastadaad pack wrote",
    ),
    "unfinished": (
        lambda out: (out / SUMMARY).rename(out / JOURNAL),
        "{out} is unfinished: run the same fastadaad pack command again to resume",
    ),
    "empty summary": (
        lambda out: os.truncate(out / SUMMARY, 0),
        "{out}/pack.json cannot be read (Expecting value: line 1 column 1 (char 0))" + REMEDY,
    ),
    "incomplete summary": (
        lambda out: change_summary(out, lambda summary: summary.pop("mean")),
        "{out}/pack.json cannot be read ('mean')" + REMEDY,
    ),
    "another format": (
        lambda out: change_summary(out, lambda summary: summary["origin"].update(format=FORMAT + 1)),
        "{out}/pack.json has format 2, and this version reads 1" + REMEDY,
    ),
    "short images": (
        lambda out: os.truncate(out / "train_images.u8", 1343),
        "{out}/train_images.u8 has 1343 bytes, not 1344 as in pack.json" + REMEDY,
    ),
    "long images": (
        lambda out: os.truncate(out / "test_images.u8", 577),
        "{out}/test_images.u8 has 577 bytes, not 576 as in pack.json" + REMEDY,
    ),
    "no images": (
        lambda out: (out / "test_images.u8").unlink(),
        "{out}/test_images.u8 does not exist" + REMEDY,
    ),
    "no labels": (
        lambda out: (out / "train_labels.npy").unlink(),
        "{out}/train_labels.npy does not exist" + REMEDY,
    ),
    "damaged labels": (
        lambda out: change_byte(out / "train_labels.npy", -8),
        "{out}/train_labels.npy is damaged (its checksum differs)" + REMEDY,
    ),
    "another label": (
        lambda out: write_labels(out, np.array([0, 2, 1])),
        "{out}/test_labels.npy holds the label 2, outside 0..1" + REMEDY,
    ),
    "negative label": (
        lambda out: write_labels(out, np.array([0, 1, -1])),
        "{out}/test_labels.npy holds the label -1, outside 0..1" + REMEDY,
    ),
    "fewer labels": (
        lambda out: write_labels(out, np.array([0, 1])),
        "{out}/test_labels.npy holds int64 [2], not int64 labels of 3 images" + REMEDY,
    ),
    "other numbers": (
        lambda out: write_labels(out, np.array([0.0, 1.0, 1.0])),
        "{out}/test_labels.npy holds float64 [3], not int64 labels of 3 images" + REMEDY,
    ),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_pack_is_refused(out, damage, message):
    damage(out)
    with pytest.raises(DataError) as caught:
        load(out)
    assert str(caught.value) == message.format(out=out)


def planted(value: object, *names: str) -> Callable[[dict], object]:
    """Returns a function that sets one entry of a summary."""

    def change(summary: dict) -> None:
        for name in names[:-1]:
            summary = summary[name]
        summary[names[-1]] = value

    return change


WRONG = [None, -1, 0, "7", 1e300, float("nan"), [], {}, [None], [[]], True, 2**63, "x" * 7]


@pytest.mark.parametrize(
    "names",
    [
        *(("origin", name) for name in ("image_size", "format")),
        *(("splits", "train", name) for name in ("num_images", "chunk_images", "chunk_sha256", "labels_sha256")),
        *(
            ("class_names",),
            ("mean",),
            ("std",),
            ("origin",),
            ("splits",),
            ("splits", "test"),
            ("splits", "test", "skipped"),
        ),
    ],
    ids=".".join,
)
def test_a_summary_with_a_wrong_entry_is_refused_in_one_line(out, names):
    whole = (out / SUMMARY).read_text()
    for value in WRONG:
        if (names[-1], value) == ("skipped", {}):
            continue
        (out / SUMMARY).write_text(whole)
        change_summary(out, planted(value, *names))
        with pytest.raises(DataError) as caught:
            load(out)
        assert str(caught.value).startswith(f"{out}/")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"origin":' * 100_000, b"[]", b'"', b"3"], ids=lambda text: text[:9]
)
def test_a_summary_of_another_structure_is_refused(out, content):
    (out / SUMMARY).write_bytes(content)
    with pytest.raises(DataError, match=r"pack.json cannot be read \(.*\): delete "):
        load(out)


def test_a_summary_that_is_too_long_is_not_read(out):
    os.truncate(out / SUMMARY, SUMMARY_BYTES + 1)
    with pytest.raises(DataError, match=rf"it has {SUMMARY_BYTES + 1} bytes and at most {SUMMARY_BYTES} are read"):
        load(out)


class Attack:
    """Object whose pickle creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_labels_that_are_a_pickle_or_an_archive_are_refused_unread(out, tmp_path):
    objects, archive = io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([Attack(tmp_path / "ran")], object), allow_pickle=True)
    np.savez(archive, a=np.zeros(3))
    for content in (pickle.dumps(Attack(tmp_path / "ran")), objects.getvalue(), archive.getvalue()):
        (out / "test_labels.npy").write_bytes(content)
        checksum = sha256(content).hexdigest()
        change_summary(out, planted(checksum, "splits", "test", "labels_sha256"))
        with pytest.raises(DataError, match=r"test_labels.npy is damaged \("):
            load(out)
    assert not (tmp_path / "ran").exists()


def test_a_file_of_labels_that_is_too_long_is_not_read(out):
    os.truncate(out / "test_labels.npy", 2**40)
    with pytest.raises(DataError, match=r"test_labels.npy is damaged \(it has 1099511627776 bytes and at most 10024 "):
        load(out)


def verify(out: Path) -> list[int]:
    """Returns the numbers of images that verify_pack reports while it reads."""
    num_images: list[int] = []
    verify_pack(out, read_pack(out), num_images.append)
    return num_images


def test_an_intact_pack_is_verified_chunk_by_chunk(out):
    assert verify(out) == [2, 3, 2, 3]  # one of the first three files is skipped


@pytest.mark.parametrize(
    ("split", "image", "images"),
    [("train", 0, "0 to 1"), ("train", 2, "2 to 4"), ("train", 6, "5 to 6"), ("test", 2, "0 to 2")],
)
def test_a_flipped_bit_in_the_images_is_found_and_located(out, split, image, images):
    path = out / f"{split}_images.u8"
    change_byte(path, image * IMAGE_BYTES + 11)
    load(out)  # loading does not read the images
    with pytest.raises(DataError) as caught:
        verify(out)
    assert str(caught.value) == f"{path} is damaged in images {images}{REMEDY.format(out=out)}"


def test_labels_are_verified_too(out):
    change_byte(out / "test_labels.npy", -1)
    with pytest.raises(DataError, match=r"test_labels\.npy is damaged"):
        verify(out)
