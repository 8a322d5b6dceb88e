"""Images that stay in host memory or a memory map: a batch is gathered there and copied to the GPU ahead of its use."""

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def uploaded(images: Tensor, batches: Iterable[Tensor], batch_size: int, device: torch.device) -> Iterator[Tensor]:
    """images[indices], uint8 [B, H, W, C] on the CUDA device, for each `indices` of `batches`; B <= batch_size.

    The copy of the next batch, on a stream of its own, overlaps with what the consumer does with this one.
    """
    stream = torch.cuda.Stream(device)
    shape = (batch_size, *images.shape[1:])
    buffers = [(torch.empty(shape, dtype=torch.uint8, pin_memory=True), torch.cuda.Event()) for _ in range(2)]
    ahead: deque[tuple[Tensor, torch.cuda.Event]] = deque()
    for number, indices in enumerate(batches):
        buffer, copied = buffers[number % 2]
        copied.synchronize()  # of the batch before the last, out of this buffer
        gathered = torch.index_select(images, 0, indices, out=buffer[: len(indices)])
        with torch.cuda.stream(stream):
            ahead.append((gathered.to(device, non_blocking=True), copied))
            copied.record()
        if len(ahead) == 2:
            yield _handed_over(*ahead.popleft())
    while ahead:
        yield _handed_over(*ahead.popleft())


def _handed_over(batch: Tensor, copied: torch.cuda.Event) -> Tensor:
    """`batch` for the current stream, which waits for its copy; the memory is not reused before that stream is done."""
    consumer = torch.cuda.current_stream(batch.device)
    consumer.wait_event(copied)
    batch.record_stream(consumer)
    return batch
