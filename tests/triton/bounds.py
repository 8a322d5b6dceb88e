"""A guard for Triton's interpreter: every address that a kernel loads or stores must lie inside a tensor of its launch.

For the time of a launch each tensor moves into a buffer of its own with a margin on both sides, so that an
overrun ends in a margin and not unseen in a neighbouring tensor.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

MARGIN_BYTES = 1 << 20


class OutOfBoundsError(Exception):
    """A kernel touched memory outside the tensors of its launch."""


def _span(tensor: torch.Tensor) -> int:
    """Elements between the first and the last one of a tensor in memory, both included; 0 for an empty tensor."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _with_margins(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values and strides in the middle of a new buffer."""
    margin = MARGIN_BYTES // tensor.element_size()
    buffer = torch.zeros(_span(tensor) + 2 * margin, dtype=tensor.dtype)
    moved = torch.as_strided(buffer, tensor.shape, tensor.stride(), margin)
    return moved.copy_(tensor)


def _check(pointers, mask, tensors: list[torch.Tensor]) -> None:
    addresses = pointers.data[mask.data.astype(bool)].astype(np.int64)
    inside = np.zeros(addresses.shape, dtype=bool)
    for tensor in tensors:
        size = tensor.element_size()
        first = tensor.data_ptr()
        inside |= (addresses >= first) & (addresses <= first + (_span(tensor) - 1) * size)
    if not inside.all():
        raise OutOfBoundsError(f"{(~inside).sum()} of {inside.size} addresses are outside the tensors of the launch")


@contextmanager
def bounds_guard() -> Iterator[None]:
    """Within it each interpreted launch raises (with OutOfBoundsError in its message) where it leaves its tensors."""
    launch = GridExecutor.__call__
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    tensors = []

    def guarded_launch(executor, *args, **kwargs):
        moved = {id(a): _with_margins(a) for a in args if isinstance(a, torch.Tensor)}
        tensors[:] = moved.values()
        launch(executor, *(moved.get(id(a), a) for a in args), **kwargs)
        for argument in args:
            if isinstance(argument, torch.Tensor):
                argument.copy_(moved[id(argument)])

    def guarded_load(builder, pointers, mask, *rest):
        _check(pointers, mask, tensors)
        return load(builder, pointers, mask, *rest)

    def guarded_store(builder, pointers, value, mask, *rest):
        _check(pointers, mask, tensors)
        return store(builder, pointers, value, mask, *rest)

    with (
        mock.patch.object(GridExecutor, "__call__", guarded_launch),
        mock.patch.object(InterpreterBuilder, "create_masked_load", guarded_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", guarded_store),
    ):
        yield
