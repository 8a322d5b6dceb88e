"""Whether all processes of a training see the same data set: their batches only fit together if they do."""

import hashlib
import itertools
import os

import torch

from fastadaad.data.dataset import DataError, Dataset, ImageFiles, Images
from fastadaad.runtime.distributed import current_process_group

NUM_SAMPLED = 256  # images of an array of which all pixels are compared; of an array on disk the rest is not even read


def check_same_on_all_ranks(dataset: Dataset) -> None:
    """Raises the same DataError on every rank where the data sets of two ranks differ; one process is right alone."""
    process_group = current_process_group()
    if process_group.size == 1:
        return
    fingerprints = process_group.all_gather(fingerprint(dataset))
    differing = [rank for rank, other in enumerate(fingerprints) if other != fingerprints[0]]
    if not differing:
        return
    contents, rank = _contents(dataset), differing[0]
    difference = process_group.all_gather(_difference(process_group.broadcast(contents), contents))[rank]
    raise DataError(
        f"rank {rank} has another data set than rank 0: {difference}; give all ranks the same files, in data.root"
    )


def fingerprint(dataset: Dataset) -> str:
    """sha256 of the names of image files, or of the shape and 256 images of an array, with all labels and classes."""
    digest = hashlib.sha256(repr((dataset.name, dataset.class_names)).encode())
    for images, labels in _parts(dataset).values():
        if isinstance(images, ImageFiles):
            digest.update(b"\0".join(map(os.fsencode, images.names)))
        else:
            digest.update(repr(tuple(images.shape)).encode())
            digest.update(_sampled(images).cpu().numpy().tobytes())
        digest.update(labels.numpy().tobytes())
    return digest.hexdigest()


def _parts(dataset: Dataset) -> dict[str, tuple[Images, torch.Tensor]]:
    return {
        "training": (dataset.train_images, dataset.train_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }


def _sampled(images: torch.Tensor) -> torch.Tensor:
    """Evenly spaced ones."""
    return images[:: max(1, len(images) // NUM_SAMPLED)]


def _contents(dataset: Dataset) -> dict[str, tuple[int, list[str]]]:
    """Of each part how many images there are, and their names where they are files."""
    return {
        part: (len(images), list(images.names) if isinstance(images, ImageFiles) else [])
        for part, (images, _) in _parts(dataset).items()
    }


def _difference(first: dict[str, tuple[int, list[str]]], other: dict[str, tuple[int, list[str]]]) -> str:
    """What is another in `other` than in `first`, as far as the contents tell."""
    for part, (num_first, names_first) in first.items():
        num_other, names_other = other[part]
        pairs = itertools.zip_longest(names_other, names_first, fillvalue="nothing")
        name = next(
            (f", of which {theirs} is the first in place of {ours}" for theirs, ours in pairs if theirs != ours), ""
        )
        if num_other != num_first or name:
            return f"{num_other} {part} images in place of {num_first}{name}"
    return "other pixels, labels or class names"
