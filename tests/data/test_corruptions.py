"""The reader of corrupted test sets: slices of the files, the corruptions of the mean, and damaged folders."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastadaad.data import DataError, Dataset, ImageFiles
from fastadaad.data.corruptions import BENCHMARK, read_corruptions

RNG = np.random.default_rng(0)
NUM_IMAGES, SHAPE = 6, (4, 4, 3)
LABELS = np.arange(NUM_IMAGES) % 3
DATASET = Dataset(
    name="cifar10",
    train_images=torch.zeros(1, *SHAPE, dtype=torch.uint8),
    train_labels=torch.zeros(1, dtype=torch.int64),
    test_images=torch.zeros(NUM_IMAGES, *SHAPE, dtype=torch.uint8),
    test_labels=torch.from_numpy(LABELS),
    class_names=("a", "b", "c"),
)


def write(folder: Path, *names: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Writes labels.npy and NAME.npy; `arrays` replace or add some. Returns the images by name."""
    images = {name: RNG.integers(0, 256, (5 * NUM_IMAGES, *SHAPE), dtype=np.uint8) for name in names}
    for name, array in ({"labels": np.tile(LABELS, 5).astype(np.uint8)} | images | arrays).items():
        np.save(folder / f"{name}.npy", array)
    return images


def test_each_severity_is_a_slice_of_the_mapped_file(tmp_path):
    images = write(tmp_path, "fog", "speckle_noise", "contrast")
    corruptions = read_corruptions(tmp_path, DATASET)
    assert corruptions.names == ("fog", "contrast", "speckle_noise")  # the benchmark's in its order, then others
    for name, array in images.items():
        severities = corruptions.images(name)
        assert len(severities) == 5
        for number, severity in enumerate(severities):
            np.testing.assert_array_equal(severity, array[number * NUM_IMAGES : (number + 1) * NUM_IMAGES])
    before = (tmp_path / "fog.npy").read_bytes()
    corruptions.images("fog")[0].zero_()  # copy on write
    assert (tmp_path / "fog.npy").read_bytes() == before


def test_the_mean_is_over_the_benchmark_or_over_all_if_it_is_incomplete(tmp_path):
    write(tmp_path, "saturate", *BENCHMARK)
    whole = read_corruptions(tmp_path, DATASET)
    assert (len(whole.names), whole.averaged, whole.missing) == (16, BENCHMARK, ())
    (tmp_path / "snow.npy").unlink()
    part = read_corruptions(tmp_path, DATASET)
    assert (part.averaged, part.missing) == (part.names, ("snow",))
    assert "saturate" in part.averaged


def wide_labels(dtype: type) -> np.ndarray:
    return np.tile(LABELS, 5).astype(dtype)


SIZE = (5 * NUM_IMAGES, *SHAPE)
# Arrays that replace files of a good folder, and words of the message.
BAD_ARRAYS = {
    "floats": ({"fog": np.zeros(SIZE, np.float32)}, "fog.npy holds float32 [30, 4, 4, 3], not uint8 [30, 4, 4, 3]"),
    "one severity": ({"fog": np.zeros((6, *SHAPE), np.uint8)}, "fog.npy holds uint8 [6, 4, 4, 3]"),
    "channels first": ({"fog": np.zeros((30, 3, 4, 4), np.uint8)}, "fog.npy holds uint8 [30, 3, 4, 4]"),
    "by columns": ({"fog": np.zeros(SIZE, np.uint8, order="F")}, "column by column"),
    "objects": ({"fog": np.array([{}], dtype=object)}, "fog.npy cannot be read (it holds pickled objects"),
    "labels of floats": ({"labels": wide_labels(np.float64)}, "labels.npy holds float64 [30], not 30 class numbers"),
    "too few labels": ({"labels": wide_labels(np.int64)[:-1]}, "labels.npy holds int64 [29]"),
    "pickled labels": ({"labels": np.array([{}], dtype=object)}, "labels.npy cannot be read"),
    "another label": (
        {"labels": np.where(np.arange(30) == 17, 99, wide_labels(np.int64))},
        "labels.npy does not hold the test labels of cifar10, 5 times (the first other one is number 17)",
    ),
    "a huge label": ({"labels": wide_labels(np.uint64) + np.uint64(2**64 - 3)}, "does not hold the test labels"),
}


def error_of(folder: Path, dataset: Dataset = DATASET) -> str:
    with pytest.raises(DataError) as caught:
        read_corruptions(folder, dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_an_array_that_does_not_fit_is_named(tmp_path, name):
    arrays, words = BAD_ARRAYS[name]
    write(tmp_path, "fog", **arrays)
    message = error_of(tmp_path)
    assert words in message
    assert ": unpack the archive" in message or ": give the folder of cifar10" in message


def test_a_damaged_or_missing_file_is_named(tmp_path):
    assert "holds no corruptions: give the folder" in error_of(tmp_path / "nowhere")
    assert "holds no corruptions" in error_of(tmp_path)
    write(tmp_path, "fog")
    whole = (tmp_path / "fog.npy").read_bytes()
    for content, words in (
        (whole[:-7], "is not what"),
        (b"", "cannot be read"),
        (b"<!DOCTYPE html>", "is a web page"),
        (whole.replace(b"(30, 4, 4, 3)", b"(-3, 4, 4, 3)"), "is not what"),
    ):
        (tmp_path / "fog.npy").write_bytes(content)
        assert words in error_of(tmp_path)
    (tmp_path / "fog.npy").unlink()
    os.mkfifo(tmp_path / "fog.npy")
    assert "fog.npy does not exist" in error_of(tmp_path)
    (tmp_path / "fog.npy").unlink()
    write(tmp_path, "fog")
    (tmp_path / "labels.npy").unlink()
    assert "labels.npy does not exist" in error_of(tmp_path)


@pytest.mark.parametrize("name", ["[red]", "a\nb", "\x1b[2J", "x" * 65, "é"])
def test_a_name_that_a_terminal_might_obey_is_refused(tmp_path, name):
    write(tmp_path, "fog", name)
    with pytest.raises(DataError, match=r"is not named like fog\.npy: rename it"):
        read_corruptions(tmp_path, DATASET)


def test_image_files_are_refused(tmp_path):
    write(tmp_path, "fog")
    files = ImageFiles(root=tmp_path, names=["a.png"], image_size=4)
    assert "run fastadaad pack" in error_of(tmp_path, replace(DATASET, test_images=files))
