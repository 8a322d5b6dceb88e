"""Data sets by name; each is read once, into uint8 tensors or a list of image files."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastadaad.config import OnError
from fastadaad.data.dataset import DataError, Dataset
from fastadaad.data.datasets.cifar import load_cifar
from fastadaad.data.datasets.digits import load_digits
from fastadaad.data.datasets.fashion_mnist import load_fashion_mnist
from fastadaad.data.datasets.image_folder import load_folder, load_imagenet
from fastadaad.data.datasets.packed import load_packed
from fastadaad.data.datasets.source import Source
from fastadaad.data.datasets.tiny_imagenet import load_tiny_imagenet

DATASETS: dict[str, Callable[[Source], Dataset]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "cifar10": partial(load_cifar, "cifar10"),
    "cifar100": partial(load_cifar, "cifar100"),
    "tiny-imagenet": load_tiny_imagenet,
    "imagenet": load_imagenet,
    "folder": load_folder,
    "packed": load_packed,
}
FILE_DATASETS = ("imagenet", "folder")
"""Data sets of image files, which read image_size and center_share."""
OWN_DATASETS = ("folder", "packed")
"""Data sets whose images depend on `root`, not on the name alone."""


def load_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    *,
    image_size: int | None = None,
    center_share: float | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """Reads a data set.

    Args:
        name: Key of DATASETS.
        root: Folder of the files; default: $FASTADAAD_DATA, or ~/.cache/fastadaad if it is not set.
        download: Fetch missing files from the network; their MD5 is checked. Without it nothing is fetched.
        image_size: Side in pixels to which image files are resized.
        center_share: Side of the center crop of image files as a fraction of the shorter side.
        on_error: "raise", or "skip" to leave out image files that cannot be decoded.

    Returns:
        Images as uint8 arrays [M, H, W, C] or as ImageFiles, with int64 labels.

    Raises:
        DataError: If files are missing or damaged, or an option does not fit the data set.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is unknown: use one of {', '.join(DATASETS)}")
    if name not in FILE_DATASETS and (image_size, center_share) != (None, None):
        raise DataError(f"the images of {name} have one size: leave out data.image_size and data.center_share")
    folder = Path(os.path.expanduser(root or os.environ.get("FASTADAAD_DATA") or "~/.cache/fastadaad"))
    if str(folder).startswith("~") and name != "digits":  # which has no files
        raise DataError("the home folder of this user is unknown: set data.root=FOLDER, or FASTADAAD_DATA")
    return DATASETS[name](
        Source(root=folder, download=download, image_size=image_size, center_share=center_share, on_error=on_error)
    )
