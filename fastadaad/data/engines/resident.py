"""The resident engine: the whole data set as uint8 on the device, from which batches are cut there in one pass."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastadaad.data.augmentation import Draws
from fastadaad.data.dataset import ImageFiles, Images
from fastadaad.data.engines.host_images import uploaded
from fastadaad.data.engines.read_ahead import is_mapped, read_ahead
from fastadaad.data.pipeline import Batch, Pipeline
from fastadaad.ops import crop_flip

# The networks and their activations need the rest.
SHARE_OF_FREE_MEMORY = 0.5


class ResidentPipeline(Pipeline):
    """See Pipeline; images are an array.

    It lives on the device if it is no larger than `max_bytes`; None: half of the free memory. Else it stays where it
    is, in memory or a memory map, and batches are gathered from it ahead of their use. The attribute `images` is where
    it lives, for other pipelines to share. `channels_last`: x_natural has that memory format.
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        *,
        channels_last: bool = False,
        max_bytes: float | None = None,
        **options: Any,
    ):
        super().__init__(images, labels, **options)
        if isinstance(images, ImageFiles):
            raise ValueError(f"{images.root} holds image files: run fastadaad pack, or set data.engine=dali or torch")
        self.channels_last = channels_last
        limit = _free_bytes(self.device) if max_bytes is None else max_bytes
        self.is_on_device = images.is_cuda or images.nbytes <= limit
        self._images = images.to(self.device) if self.is_on_device else images
        self.images = self._images
        self._ahead = partial(read_ahead, self._images) if is_mapped(self._images) else iter
        self._samples, self._labels = self.samples.to(self.device), self.labels.to(self.device)

    def _read(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        if not batches:
            return
        # One copy to the device for an epoch; the splits are as the batches were.
        on_device = torch.cat(list(batches)).to(self.device).split(self.sampling.batch_size)
        if self.is_on_device:
            indices = self._ahead([self._samples[batch] for batch in on_device])
            for batch, chosen in zip(on_device, indices, strict=True):
                yield self._cut(self._images, chosen, epoch, batch)
        else:
            indices = self._ahead([self.samples[batch] for batch in batches])
            gathered = uploaded(self._images, indices, self.sampling.batch_size, self.device)
            for batch, images in zip(on_device, gathered, strict=True):
                yield self._cut(images, torch.arange(len(batch), device=self.device), epoch, batch)

    def _cut(self, images: Tensor, indices: Tensor, epoch: int, batch: Tensor) -> Batch:
        draws: Draws = self._draw(epoch, batch)
        x_natural = crop_flip(
            images,
            indices,
            draws.top,
            draws.left,
            draws.flip,
            self.augmentation.padding,
            cutout=self.augmentation.cutout,
            cutout_center=draws.cutout_center,
            channels_last=self.channels_last,
        )
        return x_natural, self._labels[batch]


def _free_bytes(device: torch.device) -> float:
    """What images may take of the memory of a device; on the CPU they are where they are."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return SHARE_OF_FREE_MEMORY * free
