"""Extra images against the arrays they were written from, and each kind of broken file against its message."""

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from fastadaad.data import DataError, extra_images
from fastadaad.data.extra_images import ExtraImages

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
@pytest.mark.parametrize("chunk_bytes", [1000, 2**24])  # of 7,200, so that the last chunk is a smaller one
def test_images_go_into_their_part_of_an_array(tmp_path, monkeypatch, keys, save, chunk_bytes):
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


def test_a_version_of_numpys_format_that_is_not_known_is_named(tmp_path):
    path = tmp_path / "extra.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in (("image", IMAGES), ("label", LABELS)):
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array, version=(3, 0))
    with pytest.raises(DataError, match=r"extra.npz holds images in version \(3, 0\) .*: save them with numpy.savez"):
        read(path)


def test_the_images_are_in_memory_once(tmp_path, monkeypatch):
    """numpy and zipfile tell tracemalloc what they allocate."""
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
    ("arrays", "complaint"),
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
        ({"image": IMAGES, "label": np.array(LABELS, object)}, "cannot be read (label: Object arrays cannot be loaded"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, complaint):
    assert error(write(tmp_path / "extra.npz", **arrays)).startswith(complaint)


def test_files_that_are_no_npz_are_named(tmp_path):
    path = tmp_path / "extra.npz"
    assert error(path) == "does not exist: set data.extra_images to an .npz file"
    path.write_bytes(b"<!DOCTYPE html><html>")
    assert error(path) == "is a web page, not an .npz file: download it again"
    path.write_bytes(b"")
    assert error(path).startswith("is truncated or no .npz file (File is not a zip file): ")
    write(path, image=IMAGES, label=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert error(path).startswith("is truncated or no .npz file (File is not a zip file): copy or make it again")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_changed_pixel_is_noticed(tmp_path, save):
    path = write(tmp_path / "extra.npz", save, image=IMAGES, label=LABELS)
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    assert error(path).startswith("cannot be read (image: ")


def test_an_array_shorter_than_its_header_says_is_noticed(tmp_path):
    """The header says 50 images; the file in the archive ends after 49 of them, and its checksum is right."""
    path = write(tmp_path / "extra.npz", image=IMAGES, label=LABELS)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["image.npy"] = members["image.npy"][: -IMAGES[0].nbytes]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert error(path).startswith("cannot be read (image: it ends before its last image): ")
