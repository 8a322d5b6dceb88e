"""Batches of the images that `evaluate` accepts: a DataLoader, a Dataset, a pair of tensors or a function."""

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from fastadaad.config import require_integer
from fastadaad.inner.checks import check_batch

Batches = Iterable[tuple[Tensor, Tensor]]
Images = DataLoader[Any] | Dataset[Any] | tuple[Tensor, Tensor] | Callable[[], Batches]


def batches_of(data: Images, device: torch.device, batch_size: int) -> Callable[[], Batches]:
    """Returns a function that iterates over all batches of `data` each time it is called.

    Args:
        data: Images and labels; see `evaluate`.
        device: Device that the batches are moved to, unless `data` is a function.
        batch_size: Number of images per batch of a Dataset or a pair; the last batch may be smaller.

    Returns:
        A function that yields (x_natural [B, C, H, W], labels [B]), whose types, shapes and dtypes are checked.

    Raises:
        ValueError: `data` is of another kind, `batch_size` is not positive, or a pair has the wrong shapes or dtypes.
            Batches are checked when they are read.
    """
    require_integer("batch_size", batch_size, 1)
    if isinstance(data, DataLoader):
        return lambda: _moved(data, device)
    if isinstance(data, Dataset):
        return lambda: _moved(DataLoader(data, batch_size=batch_size, collate_fn=_collate), device)
    if isinstance(data, tuple | list) and _is_pair(data):
        x_natural, labels = _pair(data)
        starts = range(0, len(labels), batch_size)
        slices = [slice(start, start + batch_size) for start in starts]
        return lambda: _moved(((x_natural[rows], labels[rows]) for rows in slices), device)
    if callable(data):
        return lambda: _returned(data)
    raise ValueError(
        f"data is a {type(data).__name__}: give a DataLoader, a torch Dataset, a pair (x_natural [N, C, H, W], "
        "labels [N]), or a function without arguments that returns the batches, such as lambda: batches"
    )


def known_num_images(data: Images) -> int | None:
    """Returns the number of images of `data`, or None if only reading them tells it."""
    if isinstance(data, DataLoader):
        data = data.dataset
    if isinstance(data, tuple | list) and _is_pair(data):
        return len(data[1])
    return len(data) if isinstance(data, Sized) and not isinstance(data, tuple | list) else None


def has_fixed_order(data: Images) -> bool:
    """Returns False if `data` is a DataLoader that draws its images at random."""
    samplers = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
    return not (isinstance(data, DataLoader) and isinstance(data.sampler, samplers))


def _is_pair(data: Sequence[Any]) -> bool:
    # A list of two batches is not a pair, so one tensor must be among the two.
    return len(data) == 2 and any(isinstance(item, Tensor) for item in data)


def _moved(batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    for x_natural, labels in map(_pair, batches):
        yield x_natural.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def _returned(data: Callable[[], Batches]) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterates over the batches that a function returns."""
    batches = data()
    if not isinstance(batches, Iterable):
        raise ValueError(f"data returns {_described(batches)}: let it return the batches, such as lambda: batches")
    yield from map(_pair, batches)


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """Returns a batch after a check of its types, shapes and dtypes."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"data gives {_described(batch)} as a batch: give (x_natural [B, C, H, W], labels [B])")
    x_natural, labels = batch
    if labels is None:
        raise ValueError("labels are None: give class numbers [B] as torch.int64")
    check_batch(x_natural, labels)
    return x_natural, labels


def _collate(samples: list[Any]) -> Any:
    """Stacks the samples of a Dataset, and names the remedy for samples that cannot be stacked."""
    for sample in samples:
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(f"data gives {_described(sample)} as a sample: give (image [C, H, W], label)")
        if not isinstance(sample[0], Tensor):
            raise ValueError(
                f"an image of data is a {type(sample[0]).__name__}: give a tensor [C, H, W] with pixels in [0, 1], "
                "such as Dataset(transform=torchvision.transforms.ToTensor())"
            )
    return default_collate(samples)


def _described(value: Any) -> str:
    kind = f"a {type(value).__name__}"
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind
