"""Check that all ranks of a training read the same data set; otherwise their batches do not fit together."""

import hashlib
import itertools
import os

import torch

from fastadaad.data.dataset import DataError, Dataset, ImageFiles, Images
from fastadaad.runtime.distributed import ProcessGroup

NUM_SAMPLED = 256  # images of an array whose pixels are compared; the rest of an array on disk is not read


def check_same_on_all_ranks(dataset: Dataset, process_group: ProcessGroup) -> None:
    """Raises the same DataError on every rank if the data sets of two ranks differ."""
    if process_group.size == 1:
        return
    digests = process_group.all_gather(dataset_digest(dataset))
    differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if not differing:
        return
    contents, rank = _contents(dataset), differing[0]
    difference = process_group.all_gather(_difference(process_group.broadcast(contents), contents))[rank]
    raise DataError(
        f"rank {rank} has another data set than rank 0: {difference}; give all ranks the same files, in data.root"
    )


def dataset_digest(dataset: Dataset) -> str:
    """Returns the sha256 of labels, class names, and the names of files or the shape and 256 images of an array."""
    digest = hashlib.sha256(repr((dataset.name, dataset.class_names)).encode())
    for images, labels in _splits(dataset).values():
        if isinstance(images, ImageFiles):
            digest.update(b"\0".join(map(os.fsencode, images.names)))
        else:
            digest.update(repr(tuple(images.shape)).encode())
            digest.update(_sampled(images).cpu().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _splits(dataset: Dataset) -> dict[str, tuple[Images, torch.Tensor]]:
    return {
        "training": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }


def _sampled(images: torch.Tensor) -> torch.Tensor:
    """Returns evenly spaced images."""
    return images[:: max(1, len(images) // NUM_SAMPLED)]


def _contents(dataset: Dataset) -> dict[str, tuple[int, list[str]]]:
    """Returns the number of images of each split, and their names if they are files."""
    return {
        split: (len(images), list(images.names) if isinstance(images, ImageFiles) else [])
        for split, (images, _) in _splits(dataset).items()
    }


def _difference(first: dict[str, tuple[int, list[str]]], other: dict[str, tuple[int, list[str]]]) -> str:
    """Describes the first difference between the contents of two ranks."""
    for split, (num_first, names_first) in first.items():
        num_other, names_other = other[split]
        pairs = itertools.zip_longest(names_other, names_first, fillvalue="no file")
        names = [f"{theirs} instead of {ours}" for theirs, ours in pairs if theirs != ours]
        if names or num_other != num_first:
            return ", ".join([f"{num_other} {split} images instead of {num_first}", *names[:1]])
    return "different pixels, labels or class names"
