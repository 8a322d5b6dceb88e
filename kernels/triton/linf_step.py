"""Projected sign step.

x_adv <- clip_[lower, upper](clip_[x_natural - epsilon, x_natural + epsilon](x_adv + step_size sign(grad_x)))
"""

import torch
import triton
import triton.language as tl

from .pixels import clip, launch_flat


@triton.jit
def _linf_step_kernel(
    x_adv_ptr,  # fp32, mutated
    x_natural_ptr,  # fp32
    grad_x_ptr,
    num_pixels,
    step_size,
    epsilon,
    lower,
    upper,
    BLOCK_PIXELS: tl.constexpr,
):
    """Takes all tensors flat in one layout; every input is read once and x_adv written once."""
    pixels = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    grad_x = tl.load(grad_x_ptr + pixels, mask=inside).to(tl.float32)
    x_natural = tl.load(x_natural_ptr + pixels, mask=inside)
    x_adv = tl.load(x_adv_ptr + pixels, mask=inside)
    # As torch.sign: 0 for 0 and for NaN.
    x_adv += tl.where(grad_x > 0, step_size, tl.where(grad_x < 0, -step_size, 0.0))
    x_adv = clip(x_adv, x_natural - epsilon, x_natural + epsilon)
    tl.store(x_adv_ptr + pixels, clip(x_adv, lower, upper), mask=inside)


def linf_step(
    x_adv: torch.Tensor,
    x_natural: torch.Tensor,
    grad_x: torch.Tensor,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    """Mutates x_adv [B, ...] fp32; x_natural: fp32, grad_x: any float dtype, both of that shape, any strides."""
    launch_flat(_linf_step_kernel, x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
