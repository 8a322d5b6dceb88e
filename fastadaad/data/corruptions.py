"""Corrupted copies of a test set, such as CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019), in a local folder.

NAME.npy holds uint8 [5 M, H, W, C]: the M test images in their order with severity 1, then with severity 2, to 5;
labels.npy holds the labels of the test set, five times.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, ImageFiles
from fastadaad.data.datasets.npy_header import NpyHeader, read_npy_header
from fastadaad.runtime.untrusted_files import is_web_page, one_line, size_of

NUM_SEVERITIES = 5
LABELS = "labels"
# The benchmark's corruptions in the order of its paper. The published folders hold four more, which it leaves to
# validation: they are no part of the mean.
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
REMEDY = "unpack the archive of CIFAR-10-C or CIFAR-100-C again"


@dataclass(frozen=True, kw_only=True, eq=False)
class Corruptions:
    """Corrupted images of a test set, whose labels and order they have.

    Attributes:
        folder: Folder of the files.
        names: Corruptions in the folder: those of the benchmark in its order, then others by name.
    """

    folder: Path
    names: tuple[str, ...]

    def images(self, name: str) -> tuple[Tensor, ...]:
        """Returns uint8 [M, H, W, C] for each severity from 1 to 5, parts of one memory map."""
        # Copy on write, as torch has no read-only tensors.
        return torch.from_numpy(_load(_path(self.folder, name), "c")).chunk(NUM_SEVERITIES)

    @property
    def missing(self) -> tuple[str, ...]:
        """Corruptions of the benchmark that the folder lacks."""
        return tuple(name for name in BENCHMARK if name not in self.names)

    @property
    def averaged(self) -> tuple[str, ...]:
        """Corruptions of the mean: those of the benchmark, or all of the folder if it lacks one of them."""
        return self.names if self.missing else BENCHMARK


def read_corruptions(folder: Path, dataset: Dataset) -> Corruptions:
    """Checks the files of a folder of corrupted test images; the images are read when they are used.

    Args:
        folder: Folder of the .npy files.
        dataset: Data set whose test images are corrupted.

    Returns:
        The corruptions of the folder.

    Raises:
        DataError: The folder holds no corruption, a file is damaged, or it does not fit the test set.
    """
    if isinstance(dataset.test_images, ImageFiles):
        raise DataError(f"{folder} has arrays and the data set has image files: run fastadaad pack on the image files")
    found = {path.stem for path in folder.glob("*.npy")} - {LABELS} if folder.is_dir() else set()
    if not found:
        raise DataError(f"{folder} holds no corruptions: give the folder of fog.npy, labels.npy and the like")
    odd = sorted(name for name in found if not NAME.fullmatch(name))  # tables and CSV files show the names
    if odd:
        raise DataError(f"{_path(folder, odd[0])} is not named like fog.npy: rename it, with letters, digits, - and _")
    names = (*[name for name in BENCHMARK if name in found], *sorted(found - set(BENCHMARK)))
    _check_labels(_path(folder, LABELS), dataset)
    num_images, *image_shape = dataset.test_images.shape
    expected = (NUM_SEVERITIES * num_images, *image_shape)
    for name in names:
        path = _path(folder, name)
        shape, is_fortran, dtype = _header(path)
        if shape != expected or dtype != np.uint8 or is_fortran:
            order = " column by column" if is_fortran else ""
            raise DataError(f"{path} holds {dtype} {list(shape)}{order}, not uint8 {list(expected)}: {REMEDY}")
    return Corruptions(folder=folder, names=names)


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _header(path: Path) -> NpyHeader:
    """Returns the header of a file, which has been compared with the file's size."""
    if not path.is_file():
        raise DataError(f"{path} does not exist: {REMEDY}")
    if is_web_page(path):
        raise DataError(f"{path} is a web page, not an .npy file: download the archive again")
    try:
        with path.open("rb") as file:
            return read_npy_header(file, size_of(path))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): {REMEDY}") from error


def _load(path: Path, mode: str) -> np.ndarray:
    """Maps the array of a file."""
    try:
        return np.load(path, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): {REMEDY}") from error


def _check_labels(path: Path, dataset: Dataset) -> None:
    """Raises DataError unless the labels are those of the test set, once per severity."""
    expected = dataset.test_labels.repeat(NUM_SEVERITIES)
    header = _header(path)
    if header.dtype.kind not in "iu" or header.shape != tuple(expected.shape):
        found = f"{header.dtype} {list(header.shape)}"
        raise DataError(f"{path} holds {found}, not {len(expected)} class numbers: give the folder of {dataset.name}")
    different = np.flatnonzero(_load(path, "r") != expected.numpy())
    if len(different):
        raise DataError(
            f"{path} does not hold the test labels of {dataset.name}, {NUM_SEVERITIES} times (the first other one is "
            f"number {different[0]}): give the folder of {dataset.name}"
        )
