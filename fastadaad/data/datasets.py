"""Data sets by name: each is read once into uint8 tensors, whatever files it comes from."""

import gzip
import math
import os
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset
from fastadaad.data.splits import split_validation
from fastadaad.data.tiny_imagenet import load_tiny_imagenet

DIGITS_TEST_SIZE = 360  # about 20 % of the 1,797 scans
DIGITS_SPLIT_SEED = 0

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # installed by dataset-fashion-mnist
TORCHVISION_FASHION_MNIST = Path("FashionMNIST", "raw")  # below the folder given to torchvision
FASHION_MNIST_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
FASHION_MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_MNIST_REMEDY = (
    "run `apt-get install dataset-fashion-mnist`, or set data.root=FOLDER to a folder with the four IDX files, "
    "or set data.download=true"
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
GZIP_MAGIC = b"\x1f\x8b"
IDX_UINT8 = 0x0800  # an IDX magic number is this plus the number of dimensions


def load_dataset(name: str, root: str | os.PathLike | None = None, download: bool = False) -> Dataset:
    """The data set `name` (a key of DATASETS), from `root` or else $FASTADAAD_DATA or else ~/.cache/fastadaad.

    Nothing is fetched from the network unless `download`. Raises DataError.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is unknown: use one of {', '.join(DATASETS)}")
    folder = root or os.environ.get("FASTADAAD_DATA") or "~/.cache/fastadaad"
    return DATASETS[name](Path(folder).expanduser(), download)


def _load_digits(root: Path, download: bool) -> Dataset:
    """The 1,797 8x8 scans bundled with scikit-learn, 0..16 scaled to 0..255; needs neither `root` nor a download.

    The test set is a fixed class-balanced draw. (The scans are ordered by writer, so the last 20 % would measure the
    change of writers as well.)
    """
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(np.round(scans.images * (255 / 16)).astype(np.uint8)).unsqueeze(3)
    labels = torch.from_numpy(scans.target.astype(np.int64))
    train, test = split_validation(labels, DIGITS_TEST_SIZE, DIGITS_SPLIT_SEED)
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
    )


def _load_fashion_mnist(root: Path, download: bool) -> Dataset:
    """The original IDX files, from `root`, the Debian package or torchvision's download, in this order."""
    folder = _fashion_mnist_folder(root, download)
    train_images, train_labels = _read_idx_pair(folder, *FASHION_MNIST_TRAIN)
    test_images, test_labels = _read_idx_pair(folder, *FASHION_MNIST_TEST)
    return Dataset(
        name="fashion-mnist",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=FASHION_MNIST_CLASSES,
    )


def _fashion_mnist_folder(root: Path, download: bool) -> Path:
    """The first folder that holds all four files; a folder may have torchvision's layout."""
    folders = [base / layout for base in (root, DEBIAN_FASHION_MNIST) for layout in (Path(), TORCHVISION_FASHION_MNIST)]
    missing = {folder: _missing_idx_files(folder) for folder in folders}
    complete = [folder for folder in folders if not missing[folder]]
    if complete:
        return complete[0]
    if download:
        _download_fashion_mnist(root)
        return root / TORCHVISION_FASHION_MNIST
    closest = min(folders, key=lambda folder: len(missing[folder]))
    raise DataError(f"{closest / missing[closest][0]} does not exist: {FASHION_MNIST_REMEDY}")


def _missing_idx_files(folder: Path) -> list[str]:
    return [name for name in FASHION_MNIST_TRAIN + FASHION_MNIST_TEST if not _idx_path(folder, name).is_file()]


def _idx_path(folder: Path, name: str) -> Path:
    """The file `name` in `folder`, or `name`.gz where only that exists."""
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() and not (folder / name).is_file() else folder / name


def _download_fashion_mnist(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(root, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"Fashion-MNIST could not be downloaded to {root} ({_one_line(error)}): {FASHION_MNIST_REMEDY}"
        ) from error


def _read_idx_pair(folder: Path, image_name: str, label_name: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [M, 28, 28, 1] and labels int64 [M], checked against each other."""
    image_path, label_path = _idx_path(folder, image_name), _idx_path(folder, label_name)
    images, labels = _read_idx(image_path, num_dims=3), _read_idx(label_path, num_dims=1).long()
    if images.shape[1:] != (28, 28):
        raise _broken(image_path, f"holds images of {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
    if len(labels) != len(images):
        raise _broken(label_path, f"holds {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if len(labels) == 0:
        raise _broken(label_path, "is empty")
    if labels.max() >= len(FASHION_MNIST_CLASSES):
        raise _broken(label_path, f"holds the label {labels.max()}, outside 0..{len(FASHION_MNIST_CLASSES) - 1}")
    return images.unsqueeze(3), labels


def _read_idx(path: Path, num_dims: int) -> Tensor:
    """The uint8 tensor with `num_dims` dimensions in an IDX file, gzipped or not. Raises DataError.

    Format: big-endian uint32 magic number, one uint32 per dimension, then the values.
    """
    content = _read_maybe_gzipped(path)
    start = 4 * (1 + num_dims)
    magic, *shape = np.frombuffer(content[:start].ljust(start, b"\0"), dtype=">u4").tolist()
    if magic != IDX_UINT8 + num_dims:
        raise _broken(path, f"is no IDX file of {num_dims} dimensions: it starts with {content[:8]!r}")
    if len(content) != start + math.prod(shape):
        raise _broken(path, f"has {len(content)} bytes where its header promises {start + math.prod(shape)}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def _read_maybe_gzipped(path: Path) -> bytes:
    """The content of `path`, unpacked if it is gzip data, whatever its suffix: browsers unpack .gz files silently."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content[:2] == GZIP_MAGIC else content
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"cannot be read ({_one_line(error)})") from error


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}: delete it, then {FASHION_MNIST_REMEDY}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _load_cifar(name: str, root: Path, download: bool) -> Dataset:
    """torchvision's CIFAR files; torchvision checks their MD5 before it unpickles them."""
    from torchvision import datasets

    torchvision_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        train, test = (torchvision_class(root, train=train, download=download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        reason = f" (the download failed: {_one_line(error)})" if download else ""
        remedy = "set data.download=true, or data.root=FOLDER to the folder that holds torchvision's files"
        raise DataError(f"{_bad_cifar_file(torchvision_class, root)}{reason}: {remedy}") from error
    return Dataset(
        name=name,
        train_images=torch.from_numpy(train.data),
        train_labels=torch.tensor(train.targets),
        test_images=torch.from_numpy(test.data),
        test_labels=torch.tensor(test.targets),
        class_names=tuple(train.classes),
    )


def _bad_cifar_file(torchvision_class: Any, root: Path) -> str:
    """Names the first file that torchvision rejects."""
    from torchvision.datasets.utils import check_integrity

    folder, meta = root / torchvision_class.base_folder, torchvision_class.meta
    files = [*torchvision_class.train_list, *torchvision_class.test_list, (meta["filename"], meta["md5"])]
    for file_name, md5 in files:
        path = folder / file_name
        if not path.is_file():
            return f"{path} does not exist"
        if not check_integrity(str(path), md5):
            return f"{path} is truncated or corrupt"
    return f"{folder} cannot be read"


DATASETS: dict[str, Callable[[Path, bool], Dataset]] = {
    "digits": _load_digits,
    "fashion-mnist": _load_fashion_mnist,
    "cifar10": partial(_load_cifar, "cifar10"),
    "cifar100": partial(_load_cifar, "cifar100"),
    "tiny-imagenet": load_tiny_imagenet,
}
