"""Gradient accumulation: a batch in parts that fit into memory."""

from typing import NamedTuple

from torch import Tensor

from fastadaad.inner.maximizer import InnerResult


class Part(NamedTuple):
    """Some images of a batch, [P, C, H, W] and [P], and what the search found for them."""

    x_natural: Tensor
    labels: Tensor | None
    inner: InnerResult


def split_batch(
    x_natural: Tensor, labels: Tensor | None, micro_batch: int | None
) -> list[tuple[Tensor, Tensor | None]]:
    """x_natural [B, C, H, W] and labels [B] in parts of `micro_batch` images, the last one of what is left."""
    if micro_batch is None or len(x_natural) <= micro_batch:
        return [(x_natural, labels)]
    images = x_natural.split(micro_batch)
    return list(zip(images, [None] * len(images) if labels is None else labels.split(micro_batch), strict=True))
