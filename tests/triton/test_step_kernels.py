"""linf_step and random_start equal torch bit for bit, l2_step is as accurate as torch; in every layout."""

import math

import pytest
import torch
from cases import DTYPES, assert_accurate
from fastadaad.kernels.triton.l2_step import l2_step
from fastadaad.kernels.triton.linf_step import linf_step
from fastadaad.kernels.triton.pixels import is_dense
from fastadaad.kernels.triton.random_start import random_start
from torch import Tensor

from fastadaad.ops.l2_step import l2_step_ref
from fastadaad.ops.linf_step import linf_step_ref
from fastadaad.ops.random_start import random_start_ref

SHAPES = [(37, 3, 5, 7), (1, 1), (2, 3, 32, 32), (5,), (0, 3, 4, 4)]
LOOPED_SHAPE = (2, 3, 53, 53)  # 8,427 pixels, three blocks
LINF = 2 / 255, 8 / 255, 0.0, 1.0  # step_size, epsilon, lower, upper
L2 = 0.3, 0.5, 0.0, 1.0
START = 8 / 255, 0.0, 1.0  # scale, lower, upper
STEPS = {
    "linf_step": (linf_step, linf_step_ref, LINF),
    "l2_step": (l2_step, l2_step_ref, L2),
    "random_start": (random_start, random_start_ref, START),
}
BITWISE = ["linf_step", "random_start"]


def _pixels(shape: tuple[int, ...], device: torch.device, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x_adv near x_natural, both with pixels at 0 and 1, and a normal third tensor with some zeros."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    x_natural = (1.2 * torch.rand(shape, generator=generator) - 0.1).clamp(0, 1)
    x_adv = (x_natural + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)
    third = torch.randn(shape, generator=generator)
    third[third.abs() < 0.1] = 0.0
    return x_adv.to(device), x_natural.to(device), third.to(device, dtype)


def _both(step: str, x_adv: Tensor, x_natural: Tensor, third: Tensor, scalars=None) -> tuple[Tensor, Tensor]:
    """Returns the results of kernel and reference from copies of x_adv with its strides."""
    kernel, reference, default_scalars = STEPS[step]
    scalars = default_scalars if scalars is None else scalars
    results = [x_adv.clone(), x_adv.clone()]
    kernel(results[0], x_natural, third, *scalars)
    reference(results[1], x_natural, third, *scalars)
    return results[0], results[1]


def _l2_double(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor) -> Tensor:
    step_size, epsilon, lower, upper = L2
    x_adv, x_natural, grad_x = (x.double().flatten(1) for x in (x_adv, x_natural, grad_x))
    delta = x_adv + step_size * grad_x / grad_x.norm(dim=1, keepdim=True).clamp(min=1e-12) - x_natural
    delta = delta * (epsilon / delta.norm(dim=1, keepdim=True)).clamp(max=1.0)
    return (x_natural + delta).clamp(lower, upper)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", BITWISE)
def test_bitwise_as_torch(step: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
    result, expected = _both(step, *_pixels(shape, device, dtype))
    assert torch.equal(result, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(37, 3, 5, 7), (1, 1), (2, 3, 32, 32), LOOPED_SHAPE], ids=str)
def test_l2_step_as_accurate_as_torch(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device):
    pixels = _pixels(shape, device, dtype)
    result, expected = _both("l2_step", *pixels)
    assert_accurate(result.flatten(1), expected.flatten(1), _l2_double(*pixels))


def test_l2_step_without_samples(device: torch.device):
    result, _ = _both("l2_step", *_pixels((0, 3, 4, 4), device))
    assert tuple(result.shape) == (0, 3, 4, 4)


@pytest.mark.parametrize("step", STEPS)
def test_each_operand_in_its_own_layout(step: str, device: torch.device):
    """x_adv has gaps, x_natural is channels-last, and the batch axis of the third tensor is the fastest."""
    x_adv, x_natural, third = _pixels((4, 3, 6, 5), device)
    expected, _ = _both(step, x_adv, x_natural, third)
    backing = torch.full((4, 3, 12, 5), 7.0, device=device)
    gapped = backing[:, :, ::2].copy_(x_adv)
    inside = third.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    kernel, _, scalars = STEPS[step]
    kernel(gapped, x_natural.contiguous(memory_format=torch.channels_last), inside, *scalars)
    assert torch.equal(gapped, expected)
    assert backing[:, :, 1::2].eq(7.0).all()


@pytest.mark.parametrize("step", STEPS)
def test_channels_last_is_stepped_in_place(step: str, device: torch.device):
    pixels = _pixels((4, 3, 6, 5), device)
    expected, _ = _both(step, *pixels)
    result, _ = _both(step, *(x.contiguous(memory_format=torch.channels_last) for x in pixels))
    assert is_dense(result)
    # The norms of l2_step sum the pixels in another order.
    torch.testing.assert_close(result, expected, rtol=0, atol=0 if step in BITWISE else 2e-7)


def test_is_dense():
    x = torch.empty(4, 3, 6, 5)
    views = [x, x.to(memory_format=torch.channels_last), x[1:], x[:, :1], x[:, :, ::2], x.transpose(0, 1), x[:1, 1:]]
    assert [is_dense(view) for view in views] == [True, True, True, False, False, False, True]


@pytest.mark.parametrize("step", ["linf_step", "l2_step"])
def test_epsilon_0_returns_to_x_natural(step: str, device: torch.device):
    x_adv, x_natural, grad_x = _pixels((3, 3, 5, 5), device)
    result, _ = _both(step, x_adv, x_natural, grad_x, (0.1, 0.0, 0.0, 1.0))
    assert torch.equal(result, x_natural)


@pytest.mark.parametrize("step", ["linf_step", "l2_step"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 5), LOOPED_SHAPE], ids=str)
def test_zero_gradient_inside_the_ball_changes_nothing(step: str, shape: tuple[int, ...], device: torch.device):
    _, x_natural, _ = _pixels(shape, device)
    x_adv = (x_natural + 1e-3).clamp(max=1.0)
    result, _ = _both(step, x_adv, x_natural, torch.zeros_like(x_adv))
    assert torch.equal(result, x_adv)


@pytest.mark.parametrize("step", STEPS)
def test_nan_as_in_torch(step: str, device: torch.device):
    """x_adv, x_natural and the third tensor have one NaN each, in different samples."""
    pixels = _pixels((4, 3, 5, 5), device)
    for sample, x in enumerate(pixels):
        x[sample, 1, 2, 3] = torch.nan
    result, expected = _both(step, *pixels)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-7, equal_nan=True)
    assert not result[3].isnan().any()


def test_infinite_bounds_do_not_clip(device: torch.device):
    result, expected = _both("random_start", *_pixels((3, 50), device), (2.0, -math.inf, math.inf))
    assert torch.equal(result, expected)
    assert result.max() > 1
    assert result.min() < 0
