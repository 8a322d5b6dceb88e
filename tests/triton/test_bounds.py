"""The bounds guard detects every access outside a tensor, in both directions, and every kernel runs under it."""

import importlib
import pkgutil
from collections.abc import Callable

import fastadaad.kernels.triton
import pytest
import torch
import triton
import triton.language as tl
from bounds import ACCESSES, Launch
from cases import LOOPED
from fastadaad.kernels.triton.crop_flip import crop_flip
from fastadaad.kernels.triton.cross_entropy_grad import cross_entropy_grad
from fastadaad.kernels.triton.kl_grad import kl_grad
from fastadaad.kernels.triton.l2_step import MAX_BLOCK_PIXELS, l2_step
from fastadaad.kernels.triton.linf_step import linf_step
from fastadaad.kernels.triton.random_start import random_start
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder


@triton.jit
def _copy_kernel(source_ptr, target_ptr, first_read, end_read, first_write, end_write, BLOCK: tl.constexpr):
    items = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK) - 1
    values = tl.load(source_ptr + items, mask=(items >= first_read) & (items < end_read), other=0.0)
    tl.store(target_ptr + items, values, mask=(items >= first_write) & (items < end_write))


def _copy(first_read: int, end_read: int, first_write: int, end_write: int) -> None:
    both = torch.arange(140.0)  # neighbours in memory: an overrun of one ends in the other
    _copy_kernel[(2,)](both[:70], both[70:], first_read, end_read, first_write, end_write, BLOCK=64)
    assert torch.equal(both[70:], both[:70])


def test_clean_kernel_passes():
    _copy(0, 70, 0, 70)


@pytest.mark.parametrize(
    "bounds",
    [(-1, 70, 0, 70), (0, 71, 0, 70), (0, 70, -1, 70), (0, 70, 0, 71)],
    ids=["read before", "read past", "written before", "written past"],
)
def test_off_by_one_is_caught(bounds: tuple[int, int, int, int]):
    with pytest.raises(InterpreterError, match=r"OutOfBoundsError\(.1 of "):
        _copy(*bounds)


@triton.jit
def _load_kernel(x_ptr, offset, num_blocks, BLOCK: tl.constexpr):
    tl.device_assert(tl.sum(tl.load(x_ptr + offset + tl.arange(0, BLOCK))) >= 0)


@triton.jit
def _store_kernel(x_ptr, offset, num_blocks, BLOCK: tl.constexpr):
    tl.store(x_ptr + offset + tl.arange(0, BLOCK), 1.0)


@triton.jit
def _load_scalar_kernel(x_ptr, offset, num_blocks, BLOCK: tl.constexpr):
    tl.device_assert(tl.load(x_ptr + tl.where(offset < 0, offset, BLOCK - 1 + offset)) >= 0)


@triton.jit
def _atomic_add_kernel(x_ptr, offset, num_blocks, BLOCK: tl.constexpr):
    tl.atomic_add(x_ptr + offset + tl.arange(0, BLOCK), 1.0, mask=tl.arange(0, BLOCK) < num_blocks * BLOCK)


@triton.jit
def _atomic_cas_kernel(x_ptr, offset, num_blocks, BLOCK: tl.constexpr):
    tl.atomic_cas(x_ptr + offset + tl.arange(0, BLOCK), tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32))


@pytest.mark.parametrize(
    "kernel",
    [_load_kernel, _store_kernel, _load_scalar_kernel, _atomic_add_kernel, _atomic_cas_kernel],
    ids=lambda kernel: kernel.__name__,
)
@pytest.mark.parametrize("by_name", [False, True], ids=["", "by name"])
def test_off_by_one_is_caught_without_a_mask_and_in_atomics(kernel, by_name: bool):
    def launch(offset: int) -> None:
        x = torch.zeros(100)[20:36]
        if by_name:
            kernel[(1,)](x_ptr=x, offset=offset, num_blocks=1, BLOCK=16)
        else:
            kernel[(1,)](x, offset, 1, 16)

    launch(0)
    for offset in (1, -1):
        with pytest.raises(InterpreterError, match=r"OutOfBoundsError\(.1 of "):
            launch(offset)


def test_an_address_between_the_elements_of_a_tensor_is_outside():
    x = torch.zeros(32)[::2]
    with pytest.raises(InterpreterError, match=r"OutOfBoundsError\(.8 of 16 "):
        _store_kernel[(1,)](x, 0, 1, 16)


def test_every_memory_access_is_guarded():
    """Descriptor loads and stores call the masked ones."""
    touching = {name for name in dir(InterpreterBuilder) if name.endswith(("load", "store", "cas", "rmw"))}
    assert touching - {"create_descriptor_load", "create_descriptor_store"} == set(ACCESSES)


def _pixels(num_pixels: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.rand(3, 3, num_pixels))


def _logits(num_classes: int) -> torch.Tensor:
    return torch.rand(2, num_classes)


def _crop() -> tuple[torch.Tensor, ...]:
    """Returns images, indices, top, left, flip; the last pixel of the last image is read."""
    zeros = torch.zeros(3, dtype=torch.int64)
    return torch.zeros(3, 5, 7, 3, dtype=torch.uint8), torch.arange(3), zeros, zeros, zeros.bool()


CORNERS = torch.zeros(3, 2, dtype=torch.int64)
# Every kernel of the package -> a launch with gapless tensors that accesses every element.
LAUNCHES: dict[str, Callable[[], object]] = {
    "_crop_flip_kernel": lambda: crop_flip(*_crop(), 0),
    "_crop_flip_cutout_kernel": lambda: crop_flip(*_crop(), 0, 2, CORNERS),
    "_cross_entropy_grad_kernel": lambda: cross_entropy_grad(_logits(7), torch.tensor([0, 6])),
    "_cross_entropy_grad_looped_kernel": lambda: cross_entropy_grad(_logits(LOOPED), torch.tensor([0, LOOPED - 1])),
    "_kl_grad_kernel": lambda: kl_grad(_logits(7), _logits(7), 1.0),
    "_kl_grad_looped_kernel": lambda: kl_grad(_logits(LOOPED), _logits(LOOPED), 1.0),
    "_linf_step_kernel": lambda: linf_step(*_pixels(37), 0.1, 0.2, 0.0, 1.0),
    "_l2_step_kernel": lambda: l2_step(*_pixels(37), 0.1, 0.2, 0.0, 1.0),
    "_l2_step_looped_kernel": lambda: l2_step(*_pixels(MAX_BLOCK_PIXELS + 1), 0.1, 0.2, 0.0, 1.0),
    "_random_start_kernel": lambda: random_start(*_pixels(37), 0.1, 0.0, 1.0),
}


def test_every_kernel_is_in_the_table():
    found = set()
    for module in pkgutil.iter_modules(fastadaad.kernels.triton.__path__):
        members = vars(importlib.import_module(f"fastadaad.kernels.triton.{module.name}"))
        found |= {name for name, value in members.items() if isinstance(value, InterpretedFunction)}
    assert {name for name in found if name.endswith("_kernel")} == set(LAUNCHES)


@pytest.mark.parametrize("kernel", LAUNCHES)
def test_every_tensor_of_every_kernel_is_guarded(kernel: str, guarded_kernels: list[Launch]):
    """The launch stays inside its tensors; with any tensor declared one element shorter, it is caught."""
    LAUNCHES[kernel]()
    (launch,) = guarded_kernels
    assert launch.kernel == kernel
    places = [place for place, a in enumerate(launch.arguments) if isinstance(a, torch.Tensor)]
    assert len(places) >= 3
    for place in places:
        shorter = launch.arguments[place].flatten()[:-1]
        with pytest.raises(InterpreterError, match=r"OutOfBoundsError\(.1 of "):
            launch.repeat(*launch.arguments[:place], shorter, *launch.arguments[place + 1 :])
