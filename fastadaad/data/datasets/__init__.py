"""Data sets by name; each is read once, into uint8 tensors or the list of its image files."""

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
"""Those of image files, which image_size and center_share are for."""
OWN_DATASETS = ("folder", "packed")
"""Those of which the name alone does not tell the images; `root` does."""


def load_dataset(
    name: str,
    root: str | os.PathLike | None = None,
    download: bool = False,
    *,
    image_size: int | None = None,
    center_share: float | None = None,
    on_error: OnError = "raise",
) -> Dataset:
    """The data set `name` (a key of DATASETS), from `root` or else $FASTADAAD_DATA or else ~/.cache/fastadaad.

    Nothing is fetched from the network unless `download`, and what is fetched is checked by its MD5. image_size,
    center_share: of image files, as in DataConfig. Raises DataError.
    """
    if name not in DATASETS:
        raise DataError(f"data set {name!r} is unknown: use one of {', '.join(DATASETS)}")
    if name not in FILE_DATASETS and (image_size, center_share) != (None, None):
        raise DataError(f"the images of {name} have one size: leave out data.image_size and data.center_share")
    folder = Path(root or os.environ.get("FASTADAAD_DATA") or "~/.cache/fastadaad").expanduser()
    return DATASETS[name](
        Source(root=folder, download=download, image_size=image_size, center_share=center_share, on_error=on_error)
    )
