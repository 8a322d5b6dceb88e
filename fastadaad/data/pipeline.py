"""What every engine promises: batches as a pure function of (seed, epoch, batch number)."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastadaad.data.augmentation import Augmentation, Draws, draw
from fastadaad.data.dataset import DataError, ImageFiles, Images, image_shape
from fastadaad.data.sampling import Sampling

Batch = tuple[Tensor, Tensor]


class Failure(NamedTuple):
    """An image file that is left out, and the line that says why."""

    path: Path
    reason: str


class Pipeline(ABC):
    """Batches (x_natural fp32 [B, C, H, W] in [0, 1], labels int64 [B]) on `device`, in the order of `sampling`.

    images: uint8 [M, H, W, C] or ImageFiles; labels: int64 [M]. `samples` int64: the images that take part; None: all.
    There is no hidden position: to save (epoch, batch number) is to save a pipeline, and `epoch` goes on from there in
    any process. Raises ValueError for arguments that do not fit each other.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        *,
        sampling: Sampling,
        samples: Tensor | None = None,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ):
        augmentation = augmentation or Augmentation()
        _check(images, labels, augmentation)
        self.images = images
        self.samples = torch.arange(len(images)) if samples is None else samples
        sampling.check(len(self.samples))
        self.labels = labels[self.samples]
        """int64 on the CPU, of the samples of all shards."""
        self.sampling = sampling
        self.augmentation = augmentation
        self.device = torch.device(device)
        self.skipped: dict[Path, str] = {}
        """Image files that were left out so far, and why."""

    def __len__(self) -> int:
        """Batches per epoch, in this shard."""
        return self.sampling.num_batches(len(self.samples))

    @property
    def num_images(self) -> int:
        """Images of an epoch, in this shard."""
        return self.sampling.num_images(len(self.samples))

    def shard(self, index: int, count: int) -> "Pipeline":
        """The same for every `count`-th sample of each epoch from the `index`-th on."""
        part = copy.copy(self)
        part.sampling = replace(self.sampling, shard=index, num_shards=count)
        part.sampling.check(len(part.samples))
        part.skipped = {}
        return part

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from `start_batch` on."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch {start_batch} is outside 0..{len(self)}, the number of batches of an epoch")
        return self._read(epoch, self.sampling.batches(epoch, len(self.samples))[start_batch:])

    def _draw(self, epoch: int, batch: Tensor) -> Draws:
        height, width, _ = image_shape(self.images)
        return draw(self.augmentation, self.sampling.seed, epoch, batch, height, width)

    def _skip(self, failures: Sequence[Failure], batch_size: int) -> None:
        """Note files that are left out of a batch, of which `batch_size` images stay; one without any does not come.

        Raises DataError where the files must not be left out, or where that costs a training a whole batch.
        """
        if failures and isinstance(self.images, ImageFiles) and self.images.on_error == "raise":
            raise DataError(failures[0].reason)
        self.skipped.update(failures)
        if not batch_size and self.sampling.drop_last:
            raise DataError(f"no image of a batch can be read: {failures[0].reason}")

    @abstractmethod
    def _read(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """The images and labels of each batch of positions in `samples`, drawn for `epoch`."""


def _check(images: Images, labels: Tensor, augmentation: Augmentation) -> None:
    if not isinstance(images, ImageFiles):
        if images.dtype != torch.uint8 or images.dim() != 4:
            raise ValueError(f"images are {images.dtype} {list(images.shape)}: give uint8 [M, H, W, C]")
        if augmentation.color_jitter or augmentation.min_crop_scale < 1:
            raise ValueError(
                "color_jitter and min_crop_scale are for image files, and these are arrays: leave them out"
            )
    if labels.dtype != torch.int64 or labels.shape != (len(images),):
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}: give int64 [{len(images)}], one per image")
