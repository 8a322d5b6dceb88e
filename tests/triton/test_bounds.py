"""The guard of the interpreter sees an overrun by one element in either direction, and nothing where there is none."""

import pytest
import torch
import triton
import triton.language as tl


@triton.jit
def _copy_kernel(source_ptr, target_ptr, first_read, end_read, end_write, BLOCK: tl.constexpr):
    items = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) - 1
    values = tl.load(source_ptr + items, mask=(items >= first_read) & (items < end_read), other=0.0)
    tl.store(target_ptr + items, values, mask=(items >= 0) & (items < end_write))


def _copy(first_read: int, end_read: int, end_write: int) -> None:
    both = torch.arange(140.0)  # neighbours in memory: an overrun of one lands in the other
    _copy_kernel[(2,)](both[:70], both[70:], first_read, end_read, end_write, BLOCK=64)
    assert torch.equal(both[70:], both[:70])


def test_clean_kernel_passes():
    _copy(0, 70, 70)


@pytest.mark.parametrize("bounds", [(-1, 70, 70), (0, 71, 70), (0, 70, 71)], ids=["before", "read", "write"])
def test_off_by_one_is_caught(bounds: tuple[int, int, int]):
    with pytest.raises(triton.runtime.errors.InterpreterError, match=r"OutOfBoundsError\(.1 of "):
        _copy(*bounds)
