"""Bounds guard for Triton's interpreter: each load and store must touch an element of a tensor of the launch.

During a launch each tensor is in its own buffer with a margin on both sides, so that an overrun ends in a margin
instead of a neighbouring tensor.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

MARGIN_BYTES = 1 << 20
# Memory access -> positions of its pointers and of its mask among the arguments; mask None: every pointer is accessed.
ACCESSES = {
    "create_load": (0, None),
    "create_store": (0, None),
    "create_masked_load": (0, 1),
    "create_masked_store": (0, 2),
    "create_atomic_rmw": (1, 3),
    "create_atomic_cas": (0, None),
}


class OutOfBoundsError(Exception):
    """A kernel touched memory outside the tensors of its launch."""


@dataclass(frozen=True)
class Launch:
    """A launch that the guard has recorded."""

    kernel: str
    arguments: tuple[Any, ...]
    repeat: Callable[..., None]
    """Repeats the launch with other arguments."""


def _offsets(tensor: torch.Tensor) -> np.ndarray:
    """Returns the sorted offsets of all elements from the first one, in elements."""
    offsets = np.zeros((), np.int64)
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offsets = offsets[..., None] + stride * np.arange(size)
    return np.unique(offsets)


def _with_margins(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a copy with the same strides in the middle of a new buffer."""
    margin = MARGIN_BYTES // tensor.element_size()
    span = _offsets(tensor).max(initial=-1) + 1
    buffer = torch.zeros(int(span) + 2 * margin, dtype=tensor.dtype)
    moved = torch.as_strided(buffer, tensor.shape, tensor.stride(), margin)
    return moved.copy_(tensor)


def _addresses(tensors: list[torch.Tensor]) -> np.ndarray:
    """Returns the sorted addresses of all elements."""
    found = [tensor.data_ptr() + tensor.element_size() * _offsets(tensor) for tensor in tensors]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *found]))


def _check(pointers: np.ndarray, allowed: np.ndarray) -> None:
    """Raises OutOfBoundsError unless all pointers are in `allowed`, which is sorted."""
    addresses = pointers.astype(np.int64)
    outside = np.append(allowed, -1)[np.searchsorted(allowed, addresses)] != addresses
    if outside.any():
        raise OutOfBoundsError(f"{outside.sum()} of {outside.size} addresses are outside the tensors of the launch")


@contextmanager
def bounds_guard() -> Iterator[list[Launch]]:
    """Makes each interpreted launch raise, with OutOfBoundsError in its message, if it leaves its tensors.

    Yields the list of launches, which grows with each launch.
    """
    launch, launches = GridExecutor.__call__, []
    allowed = np.zeros(0, np.int64)

    def guarded_launch(executor, *arguments, **options):
        nonlocal allowed
        launches.append(
            Launch(executor.fn.__name__, arguments, lambda *changed: guarded_launch(executor, *changed, **options))
        )
        tensors = [a for a in (*arguments, *options.values()) if isinstance(a, torch.Tensor)]
        moved = {id(tensor): _with_margins(tensor) for tensor in tensors}
        allowed = _addresses(list(moved.values()))
        launch(
            executor,
            *(moved.get(id(a), a) for a in arguments),
            **{name: moved.get(id(a), a) for name, a in options.items()},
        )
        for tensor in tensors:
            tensor.copy_(moved[id(tensor)])

    def guarded(access: Callable, pointers: int, mask: int | None) -> Callable:
        def checked(builder, *arguments, **options):
            touched = arguments[pointers].data
            _check(touched if mask is None else touched[arguments[mask].data.astype(bool)], allowed)
            return access(builder, *arguments, **options)

        return checked

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(GridExecutor, "__call__", guarded_launch))
        for name, places in ACCESSES.items():
            access = guarded(getattr(InterpreterBuilder, name), *places)
            patches.enter_context(mock.patch.object(InterpreterBuilder, name, access))
        yield launches
