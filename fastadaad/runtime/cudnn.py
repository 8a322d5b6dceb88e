"""Choice of cuDNN's algorithms."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def measured_algorithms() -> Iterator[None]:
    """Lets cuDNN measure its algorithms for each new shape and keep the fastest, inside the context.

    The batches of a training have one shape, so the measurement pays. Deterministic algorithms stay as they are.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before
