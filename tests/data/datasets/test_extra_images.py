"""Extra images against the arrays they were written from, and broken files against their messages."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastadaad.data import DataError
from fastadaad.data.datasets import extra_images
from fastadaad.data.datasets.extra_images import ExtraImages

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 8, 6, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 50)
SHAPE = (8, 6, 3)


def write(path: Path, save=np.savez, **arrays) -> Path:
    save(path, **arrays)
    return path


def read(path: Path) -> ExtraImages:
    return ExtraImages(path, num_classes=10, image_shape=SHAPE)


@pytest.mark.parametrize("keys", [("image", "label"), ("images", "labels")])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk_bytes", [1000, 2**24])  # of 7,200 bytes, so that the last chunk is smaller
def test_images_are_read_into_a_slice_of_an_array(tmp_path, monkeypatch, keys, save, chunk_bytes):
    monkeypatch.setattr(extra_images, "CHUNK_BYTES", chunk_bytes)
    extra = read(write(tmp_path / "extra.npz", save, **dict(zip(keys, (IMAGES, LABELS), strict=True)), other=LABELS))
    both = torch.full((60, *SHAPE), 7, dtype=torch.uint8)
    extra.read_into(both[10:])
    assert len(extra) == 50
    np.testing.assert_array_equal(both[10:], IMAGES)
    assert (both[:10] == 7).all()


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_labels_may_be_integers_of_any_size(tmp_path, dtype):
    extra = read(write(tmp_path / "extra.npz", image=IMAGES, label=LABELS.astype(dtype)))
    assert extra.labels.dtype == torch.int64
    np.testing.assert_array_equal(extra.labels, LABELS)


def test_an_unknown_version_of_numpys_format_is_named(tmp_path):
    path = tmp_path / "extra.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("image", IMAGES), ("label", LABELS)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, version=(3, 0))
    with pytest.raises(
        DataError, match=r"extra.npz cannot be read \(image: it is in version \(3, 0\) of numpy's format\): "
    ):
        read(path)


def test_the_images_are_in_memory_only_once(tmp_path, monkeypatch):
    """Measures with tracemalloc, to which numpy and zipfile report their allocations."""
    monkeypatch.setattr(extra_images, "CHUNK_BYTES", 2**18)
    images = np.zeros((2**24 // 192, 8, 8, 3), np.uint8)
    path = write(tmp_path / "extra.npz", image=images, label=np.zeros(len(images), np.uint8))
    target = torch.empty(images.shape, dtype=torch.uint8)
    del images
    tracemalloc.start()
    try:
        ExtraImages(path, num_classes=10, image_shape=(8, 8, 3)).read_into(target)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < target.nbytes / 4
    assert not target.any()


def error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(path).read_into(torch.empty(IMAGES.shape, dtype=torch.uint8))
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    return message.removeprefix(f"{path} ")


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": IMAGES, "y": LABELS}, "lacks the arrays image and label (found: x, y): save it with these names"),
        ({"image": IMAGES}, "lacks the arrays image and label (found: image)"),
        ({"image": IMAGES / 255, "label": LABELS}, "holds images as float64 [50, 8, 6, 3]: save them as uint8"),
        ({"image": IMAGES[0], "label": LABELS}, "holds images as uint8 [8, 6, 3]: save them as uint8 [M, H, W, C]"),
        (
            {"image": IMAGES.transpose(0, 3, 1, 2).copy(), "label": LABELS},
            "holds images of shape [3, 8, 6]: give [H, W, C] = [8, 6, 3]",
        ),
        ({"image": np.asfortranarray(IMAGES), "label": LABELS}, "holds images column by column: save numpy.asc"),
        ({"image": IMAGES, "label": LABELS / 2}, "holds labels as float64 [50]: save them as integers [M]"),
        ({"image": IMAGES, "label": np.eye(10, dtype=int)[LABELS]}, "holds labels as int64 [50, 10]: save them"),
        ({"image": IMAGES, "label": LABELS[1:]}, "holds 49 labels for 50 images: give one label per image"),
        ({"image": IMAGES, "label": LABELS + 1}, "holds the label 10, outside 0..9: give the labels of the data set"),
        ({"image": IMAGES, "label": LABELS - 1}, "holds the label -1, outside 0..9: give the labels of the data set"),
        ({"image": IMAGES, "label": np.array(LABELS, object)}, "cannot be read (label: it holds pickled objects, "),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, problem):
    assert error(write(tmp_path / "extra.npz", **arrays)).startswith(problem)


def test_files_of_other_formats_are_named(tmp_path):
    path = tmp_path / "extra.npz"
    assert error(path) == "does not exist: set data.extra_images to an .npz file"
    path.write_bytes(b"<!DOCTYPE html><html>")
    assert error(path) == "is a web page, not an .npz file: download it again"
    path.write_bytes(b"")
    assert error(path).startswith("is truncated or not an .npz file (File is not a zip file): ")
    write(path, image=IMAGES, label=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert error(path).startswith("is truncated or not an .npz file (File is not a zip file): copy or make it again")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_pixel_is_detected(tmp_path, save):
    path = write(tmp_path / "extra.npz", save, image=IMAGES, label=LABELS)
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    assert error(path).startswith("cannot be read (image: ")


def test_an_array_shorter_than_its_header_is_detected(tmp_path):
    """Reads a file whose header claims 50 images and which ends after 49, with a correct checksum."""
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    replace(path, "image", npy(IMAGES)[: -IMAGES[0].nbytes])
    size = len(npy(IMAGES)) - IMAGES[0].nbytes
    assert error(path).startswith(f"cannot be read (image: [50, 8, 6, 3] of uint8 is not what {size} bytes hold): ")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def replace(path: Path, key: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> None:
    """Rewrites the archive with another file instead of an array."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, old in members.items():
            archive.writestr(name, content if name == f"{key}.npy" else old)


def start(header: str, version: int = 1, length: int | None = None) -> bytes:
    """Returns the beginning of an .npy file."""
    size = struct.pack("<H" if version == 1 else "<I", len(header) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode()


def described(shape: str, descr: str = "'<i8'") -> bytes:
    return start(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


@pytest.mark.parametrize(
    "content",
    [
        described("(1000000000000,)"),
        described("(4294967296, 4294967296)"),  # the product is 0 in 64 bits
        described("(9223372036854775807,)"),
        described("(-1,)") + bytes(8),
        described("(-50, -1)") + bytes(400),
        described("(50,)", "'|O'") + bytes(400),
        described("(50,)", "[('a', '|O'), ('b', '<i8')]") + bytes(800),
        described("(1,)", "'|V4294967295'"),
        described("(50,)", "'<i8', 'more': 1") + bytes(400),
        described("(" * 150 + ")" * 150),
        start("-" * 9_000 + "1"),
        start("[" * 9_000),
        start("{'descr': '<i8'"),
        start(3 * "'"),
        start(f"{' ' * 20_000}{{'descr': '<i8', 'fortran_order': False, 'shape': (0,)}}"),
        start("", 2, 2**32 - 1),
        start("", 1, 2**16 - 1),
        b"\x93NUMPY",
        b"",
    ],
    ids=lambda content: repr(content[8:40]),
)
def test_a_header_that_does_not_fit_the_file_is_refused(tmp_path, content):
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    replace(path, "label", content)
    assert error(path).startswith("cannot be read (label: ")
    replace(path, "image", content)
    assert error(path).startswith("cannot be read (image: ")


def test_a_long_header_is_not_unpacked(tmp_path):
    """Reads a bounded number of bytes of a header of 64 MiB in a file of 64 kB."""
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    replace(path, "image", start(" " * (2**26 - 20_000), 2), zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    try:
        message = error(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message.startswith("cannot be read (image: ")
    assert peak < 2**20


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "extra.npz"
    images = np.zeros((2**27 // 192, 8, 8, 3), np.uint8)
    np.savez_compressed(path, image=images, label=np.zeros(len(images), np.uint8))
    size = path.stat().st_size
    assert size < 2**20
    members = 2 * 128 + images.nbytes + len(images)
    assert error(path).startswith(f"is truncated or not an .npz file (its {size} bytes are to unpack to {members}): ")


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_refused(tmp_path, compression):
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    replace(path, "image", npy(IMAGES), compression)
    assert error(path).startswith("cannot be read (image: its compression is not one of numpy's): ")


def test_an_encrypted_archive_is_refused(tmp_path):
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    content = bytearray(path.read_bytes())
    for place in (
        content.index(b"PK\1\2") + 8,
        6,
    ):  # flags of the first file, in the directory and in front of the file
        content[place] |= 1
    path.write_bytes(content)
    assert "is encrypted, password required" in error(path)
