"""Contract of the engines: batches are a pure function of (seed, epoch, batch number)."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fastadaad.data.augmentation import Augmentation, Draws, draw
from fastadaad.data.dataset import DataError, ImageFiles, Images, image_shape
from fastadaad.data.mixing import Mixing, mix
from fastadaad.data.sampling import Sampling

Batch = tuple[Tensor, Tensor]


class Failure(NamedTuple):
    """Image file that is left out, with the reason in one line."""

    path: Path
    reason: str


class Pipeline(ABC):
    """Batches (x_natural fp32 [B, C, H, W] in [0, 1], labels int64 [B]) on `device`, in the order of `sampling`.

    With `mixing` the labels of a batch are distributions, fp32 [B, N].

    A pipeline has no state to save: `epoch` resumes at any (epoch, batch number), in any process.

    Args:
        images: uint8 [M, H, W, C] or ImageFiles.
        labels: int64 [M].
        sampling: Split of the samples into batches.
        samples: Indices of the images to use, int64; None: all images.
        augmentation: Augmentation of the images; None: no augmentation.
        mixing: Mixing of the images and labels of each finished batch; None: no mixing.
        device: Device of the batches.

    Attributes:
        labels: Labels of the samples of all shards, int64 on the CPU.
        skipped: Image files that were left out so far, with the reason.

    Raises:
        ValueError: If the arguments do not fit each other, or the engine lacks an augmentation.
    """

    runs_auto_augment: ClassVar[bool] = False
    """True if the engine runs augmentation.auto_augment."""

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        *,
        sampling: Sampling,
        samples: Tensor | None = None,
        augmentation: Augmentation | None = None,
        mixing: Mixing | None = None,
        device: torch.device | str = "cpu",
    ):
        augmentation = augmentation or Augmentation()
        _check(images, labels, augmentation)
        if augmentation.auto_augment is not None and not self.runs_auto_augment:
            raise ValueError(
                f"{type(self).__name__} does not run {augmentation.auto_augment}: set data.engine=torch, or leave "
                "auto_augment out"
            )
        self.images = images
        self.samples = torch.arange(len(images)) if samples is None else samples
        sampling.check(len(self.samples))
        self.labels = labels[self.samples]
        self.sampling = sampling
        self.augmentation, self.mixing = augmentation, mixing
        self.device = torch.device(device)
        self.skipped: dict[Path, str] = {}

    def __len__(self) -> int:
        """Returns the batches per epoch of this shard."""
        return self.sampling.num_batches(len(self.samples))

    @property
    def num_images(self) -> int:
        """Images per epoch of this shard."""
        return self.sampling.num_images(len(self.samples))

    def shard(self, index: int, count: int) -> "Pipeline":
        """Returns a pipeline of samples index, index + count, ... of each epoch's order."""
        shard = copy.copy(self)
        shard.sampling = replace(self.sampling, shard=index, num_shards=count)
        shard.sampling.check(len(shard.samples))
        shard.skipped = {}
        return shard

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch.

        Args:
            epoch: Epoch number, from 0.
            start_batch: Number of the first batch, to resume within an epoch.

        Raises:
            ValueError: If `start_batch` exceeds the batches of an epoch.
            DataError: If an image file cannot be decoded and on_error is "raise".
        """
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"start_batch {start_batch} is outside 0..{len(self)}, the number of batches of an epoch")
        batches = self._read(epoch, self.sampling.batches(epoch, len(self.samples))[start_batch:])
        return batches if self.mixing is None else self._mixed(self.mixing, epoch, start_batch, batches)

    def _mixed(self, mixing: Mixing, epoch: int, start_batch: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        for number, (x_natural, labels) in enumerate(batches, start_batch):
            yield mix(mixing, self.sampling.seed, epoch, number, x_natural, labels)

    def _draw(self, epoch: int, batch: Tensor) -> Draws:
        height, width, _ = image_shape(self.images)
        return draw(self.augmentation, self.sampling.seed, epoch, batch, height, width)

    def _skip(self, failures: Sequence[Failure], batch_size: int) -> None:
        """Records files that are left out of a batch, which keeps `batch_size` images; an empty batch is not yielded.

        Raises DataError if on_error is "raise", or if a training batch (drop_last) loses all its images.
        """
        if failures and isinstance(self.images, ImageFiles) and self.images.on_error == "raise":
            raise DataError(failures[0].reason)
        self.skipped.update(failures)
        if not batch_size and self.sampling.drop_last:
            raise DataError(f"no image of a batch can be read: {failures[0].reason}")

    @abstractmethod
    def _read(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        """Yields images and labels of each batch of positions in `samples`, augmented for `epoch`."""


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
