"""Subsets and validation splits of a data set: pure functions of the labels and a size or seed."""

import torch
from torch import Tensor

from fastadaad.data.hashing import Use, hash_order


def subset(labels: Tensor, num_samples: int, seed: int) -> Tensor:
    """Draws samples that hold each class in proportion to its size.

    Args:
        labels: int64 [M].
        num_samples: Size of the draw, at most M.
        seed: Seed of the draw. With one seed, a smaller draw is contained in every larger one.

    Returns:
        Ascending indices, int64 [num_samples].

    Raises:
        ValueError: If `num_samples` is negative or larger than M.
    """
    if not 0 <= num_samples <= len(labels):
        raise ValueError(
            f"num_samples {num_samples} is outside 0..{len(labels)}, the size of the data set: choose fewer"
        )
    return _stratified_order(labels, seed)[:num_samples].sort().values


def split_validation(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Splits a data set into training and validation samples; `subset` draws the latter.

    Args:
        labels: int64 [M].
        size: Number of validation samples, at most M.
        seed: Seed of the draw.

    Returns:
        (train_indices, validation_indices), int64 [M - size] and [size], both ascending.

    Raises:
        ValueError: If `size` is larger than M.
    """
    if size > len(labels):
        raise ValueError(f"validation_size {size} is more than the {len(labels)} training images: choose fewer")
    validation = subset(labels, size, seed)
    is_train = torch.ones(len(labels), dtype=torch.bool)
    is_train[validation] = False
    return is_train.nonzero().squeeze(1), validation


def evaluation_subset(labels: Tensor, num_images: int) -> Tensor:
    """Chooses the test images of a shorter evaluation.

    They are the first ones, as in RobustBench. A set that is sorted by class, as folders of images are, has only some
    of the classes there: of it they are evenly spaced.

    Args:
        labels: int64 [M].
        num_images: Size of the choice, at most M.

    Returns:
        Ascending indices, int64 [num_images].
    """
    first = torch.arange(num_images)
    is_sorted = bool((labels.diff() >= 0).all())
    return first * len(labels) // num_images if is_sorted else first


def _stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Returns a permutation int64 [M] whose prefixes hold each class in proportion to its size.

    The permutation sorts the samples by (r + 1/2) / n for the r-th of the n shuffled samples of a class.
    """
    labels = labels.cpu()
    shuffled = hash_order(seed, Use.SPLIT, 0, len(labels))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    class_of = labels[by_class]
    class_sizes = labels.bincount()
    class_starts = class_sizes.cumsum(0) - class_sizes
    rank = torch.arange(len(labels)) - class_starts[class_of]
    position = (rank + 0.5).double() / class_sizes[class_of]
    return by_class[position.argsort(stable=True)]
