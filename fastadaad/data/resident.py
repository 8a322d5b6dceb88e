"""The resident pipeline: the whole data set lives on the device as uint8, and batches are cut from it there."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from fastadaad.data.augmentation import augmentation, epoch_order
from fastadaad.ops import crop_flip


class ResidentPipeline:
    """Batches of a data set, each a pure function of (seed, epoch, batch number); it has no hidden position.

    images: uint8 [M, H, W, C]; labels: int64 [M]; both are moved to `device`. Crops pad with `padding` black pixels.
    Without `drop_last` the last batch may be smaller and every image is visited once.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int = 0,
        padding: int = 0,
        flip: bool = False,
        shuffle: bool = True,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ):
        _check(images, labels, batch_size, drop_last)
        self.images = images.to(device).contiguous()
        self.labels = labels.to(device)
        self.batch_size = batch_size
        self.seed = seed
        self.padding = padding
        self.flip = flip
        self.shuffle = shuffle
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Batches per epoch."""
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.drop_last else whole + (rest > 0)

    def shard(self, index: int, count: int) -> "ResidentPipeline":
        """The same for every `count`-th image from the `index`-th on."""
        part = copy.copy(self)
        part.images, part.labels = self.images[index::count], self.labels[index::count]
        return part

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """(x_natural fp32 [B, C, H, W] in [0, 1], labels int64 [B]) for the batches from `start_batch` on."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch {start_batch} is outside 0..{len(self)}, the number of batches of an epoch")
        order = self._order(epoch)
        return (self._batch(epoch, order, number) for number in range(start_batch, len(self)))

    def _order(self, epoch: int) -> Tensor:
        if self.shuffle:
            return epoch_order(self.seed, epoch, len(self.images), self.images.device)
        return torch.arange(len(self.images), device=self.images.device)

    def _batch(self, epoch: int, order: Tensor, number: int) -> tuple[Tensor, Tensor]:
        indices = order[number * self.batch_size : (number + 1) * self.batch_size]
        top, left, mirrored = augmentation(self.seed, epoch, indices, self.padding, self.flip)
        return crop_flip(self.images, indices, top, left, mirrored, self.padding), self.labels[indices]


def _check(images: Tensor, labels: Tensor, batch_size: int, drop_last: bool) -> None:
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: give uint8 [M, H, W, C]")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: give int64 [{len(images)}], one per image")
    if batch_size < 1:
        raise ValueError(f"batch_size {batch_size} is not positive: give at least 1")
    if drop_last and batch_size > len(images):
        raise ValueError(
            f"batch_size {batch_size} exceeds the {len(images)} images and drop_last leaves no batch: "
            f"choose batch_size <= {len(images)}"
        )
