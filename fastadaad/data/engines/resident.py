"""The resident engine: keeps the data set as uint8 on the device and makes each batch there in one pass.

Images that do not fit stay in host memory or in a memory-mapped file: a batch of them is gathered on the host and
copied to the GPU ahead of its use.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastadaad.data.dataset import ImageFiles, Images
from fastadaad.data.mapped_images import is_mapped, read_ahead
from fastadaad.data.pipeline import Batch, Pipeline
from fastadaad.ops.crop_flip import crop_flip

# The networks and their activations need the rest.
FRACTION_OF_FREE_MEMORY = 0.5


class ResidentPipeline(Pipeline):
    """Pipeline of arrays, which live on the device if they fit.

    Args:
        images: uint8 [M, H, W, C].
        labels: int64 [M].
        channels_last: Memory format of x_natural.
        max_bytes: Size up to which images are copied to the device; None: half of its free memory. Larger images stay
            on the host.
        **options: Arguments of Pipeline.

    Attributes:
        images: The images on the device or on the host, which other pipelines can use too.
        is_on_device: True if the images are on the device.

    Raises:
        ValueError: If `images` are files.
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
        # One copy to the device per epoch, split into the same batches.
        on_device = torch.cat(list(batches)).to(self.device).split(self.sampling.batch_size)
        if self.is_on_device:
            indices = self._ahead([self._samples[batch] for batch in on_device])
            for batch, chosen in zip(on_device, indices, strict=True):
                yield self._cut(self._images, chosen, epoch, batch)
        else:
            indices = self._ahead([self.samples[batch] for batch in batches])
            gathered = _uploaded(self._images, indices, self.sampling.batch_size, self.device)
            for batch, images in zip(on_device, gathered, strict=True):
                yield self._cut(images, torch.arange(len(batch), device=self.device), epoch, batch)

    def _cut(self, images: Tensor, indices: Tensor, epoch: int, batch: Tensor) -> Batch:
        draws = self._draw(epoch, batch)
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
    """Memory of the device that images may take; no limit on the CPU, whose images are not copied."""
    if device.type != "cuda":
        return math.inf
    free, _ = torch.cuda.mem_get_info(device)
    return FRACTION_OF_FREE_MEMORY * free


def _uploaded(images: Tensor, batches: Iterable[Tensor], batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """Yields images[indices], uint8 [B, H, W, C] on the CUDA device, for the `indices` of each batch; B <= batch_size.

    The copy of the next batch runs on its own stream and overlaps with the consumer's work on this one.
    """
    stream = torch.cuda.Stream(device)
    shape = (batch_size, *images.shape[1:])
    buffers = [(torch.empty(shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
    ahead: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for number, indices in enumerate(batches):
        buffer, copied = buffers[number % 2]
        copied.synchronize()  # the batch before the last one has left this buffer
        gathered = torch.index_select(images, 0, indices, out=buffer[: len(indices)])
        with torch.cuda.stream(stream):
            ahead.append((gathered.to(device, non_blocking=True), copied))
            copied.record()
        if len(ahead) == 2:
            yield _handed_over(*ahead.popleft())
    while ahead:
        yield _handed_over(*ahead.popleft())


def _handed_over(batch: Tensor, copied: torch.cuda.Event) -> Tensor:
    """Lets the current stream wait for the copy of `batch`; its memory is not reused before that stream is done."""
    consumer = torch.cuda.current_stream(batch.device)
    consumer.wait_event(copied)
    batch.record_stream(consumer)
    return batch
