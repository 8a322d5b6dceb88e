"""Fashion-MNIST from its four IDX files."""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, check_labels
from fastadaad.data.datasets.source import Source
from fastadaad.runtime.untrusted_files import NUM_START_BYTES, check_sha256, check_unpacked, looks_like_html, one_line

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")  # installed by dataset-fashion-mnist
TORCHVISION_FOLDER = Path("FashionMNIST", "raw")  # below the folder given to torchvision
# Of the files that torchvision fetches; Debian's are packed in another way.
SHA256 = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
REMEDY = (
    "run `apt-get install dataset-fashion-mnist`, or set data.root=FOLDER to a folder with the four IDX files, "
    "or set data.download=true"
)
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
GZIP_MAGIC = b"\x1f\x8b"
IDX_UINT8 = 0x0800  # an IDX magic number is this plus the number of dimensions


def load_fashion_mnist(source: Source) -> Dataset:
    """Reads the original IDX files from `root`, the Debian package or torchvision's download, in this order.

    torchvision fetches files over http and checks their MD5, this function their sha256. Raises DataError.
    """
    folder = _folder(source)
    train_images, train_labels = _read_pair(folder, *TRAIN)
    test_images, test_labels = _read_pair(folder, *TEST)
    return Dataset(
        name="fashion-mnist",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=CLASS_NAMES,
    )


def _folder(source: Source) -> Path:
    """Returns the first folder that holds all four files, possibly in torchvision's layout."""
    folders = [base / layout for base in (source.root, DEBIAN_FOLDER) for layout in (Path(), TORCHVISION_FOLDER)]
    missing = {folder: _missing_files(folder) for folder in folders}
    complete = [folder for folder in folders if not missing[folder]]
    if complete:
        return complete[0]
    if source.download:
        _download(source.root)
        return source.root / TORCHVISION_FOLDER
    closest = min(folders, key=lambda folder: len(missing[folder]))
    raise DataError(f"{closest / missing[closest][0]} does not exist: {REMEDY}")


def _missing_files(folder: Path) -> list[str]:
    return [name for name in TRAIN + TEST if not _path(folder, name).is_file()]


def _path(folder: Path, name: str) -> Path:
    """Returns the path of the file `name` in `folder`, or of `name`.gz if only that exists."""
    packed = folder / f"{name}.gz"
    return packed if packed.is_file() and not (folder / name).is_file() else folder / name


def _download(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(root, download=True)
        _remove_forged(root / TORCHVISION_FOLDER)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(f"Fashion-MNIST could not be downloaded to {root} ({one_line(error)}): {REMEDY}") from error


def _remove_forged(folder: Path) -> None:
    """Raises ValueError for a downloaded file with another sha256, and removes it and what it was unpacked to."""
    for name, sha256 in SHA256.items():
        archive = folder / name
        if not archive.is_file():
            continue
        try:
            check_sha256(archive, sha256)
        except ValueError as error:
            archive.unlink()
            archive.with_suffix("").unlink(missing_ok=True)
            raise ValueError(f"{name}: {error}") from error


def _read_pair(folder: Path, image_name: str, label_name: str) -> tuple[Tensor, Tensor]:
    """Reads images uint8 [M, 28, 28, 1] and labels int64 [M] and checks that they fit each other."""
    image_path, label_path = _path(folder, image_name), _path(folder, label_name)
    images, labels = _read_idx(image_path, num_dims=3), _read_idx(label_path, num_dims=1).long()
    if images.shape[1:] != (28, 28):
        raise _broken(image_path, f"holds images of {images.shape[1]}x{images.shape[2]} pixels, not 28x28")
    if len(labels) != len(images):
        raise _broken(label_path, f"holds {len(labels)} labels for the {len(images)} images of {image_path.name}")
    if len(labels) == 0:
        raise _broken(label_path, "is empty")
    check_labels(label_path, labels, len(CLASS_NAMES), f"delete it, then {REMEDY}")
    return images.unsqueeze(3), labels


def _read_idx(path: Path, num_dims: int) -> Tensor:
    """Reads the uint8 tensor with `num_dims` dimensions of an IDX file, gzipped or not. Raises DataError.

    The contents decide whether it is gzipped, not the suffix: browsers unpack .gz files silently.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            if not is_packed:
                return _read_values(path, file, num_dims, path.stat().st_size)
            with gzip.GzipFile(fileobj=file) as stream:
                return _read_values(path, stream, num_dims, None)
    except (OSError, EOFError, zlib.error) as error:
        raise _broken(path, f"cannot be read ({one_line(error)})") from error


def _read_values(path: Path, stream: BinaryIO | gzip.GzipFile, num_dims: int, size: int | None) -> Tensor:
    """Reads the tensor in `stream`; `size` is its number of bytes if known.

    Format: big-endian uint32 magic number, one uint32 per dimension, then the values.
    """
    start = stream.read(NUM_START_BYTES)
    if looks_like_html(start):
        raise _broken(path, "is a web page, not an IDX file")
    length = 4 * (1 + num_dims)
    magic, *shape = np.frombuffer(start[:length].ljust(length, b"\0"), dtype=">u4").tolist()
    if magic != IDX_UINT8 + num_dims:
        raise _broken(path, f"is not an IDX file of {num_dims} dimensions: it starts with {start[:8]!r}")
    num_values = math.prod(shape)
    if size not in (None, length + num_values):
        raise _broken(path, f"has {size} bytes, not {length + num_values} as in its header")
    try:
        check_unpacked(path, length + num_values)
    except ValueError as error:
        raise _broken(path, f"is refused: {error}") from error
    stream.seek(length)
    values = stream.read(num_values + 1)  # the extra byte makes gzip check the checksum, and detects a longer file
    if len(values) != num_values:
        found = "too many" if len(values) > num_values else length + len(values)
        raise _broken(path, f"has {found} bytes, not {length + num_values} as in its header")
    return torch.from_numpy(np.frombuffer(values, np.uint8).reshape(shape).copy())


def _broken(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}: delete it, then {REMEDY}")
