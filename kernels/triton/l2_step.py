"""Normalised step and projection onto the l2 ball, per sample.

delta = x_adv + step_size grad_x / max(|grad_x|, 1e-12) - x_natural
x_adv <- clip_[lower, upper](x_natural + delta min(1, epsilon / |delta|))
"""

import torch
import triton
import triton.language as tl

from .pixels import clip, launch_in_place

MAX_BLOCK_PIXELS = 8_192  # longer samples exceed the registers of one program and go to the looped kernel
LOOPED_BLOCK_PIXELS = 4_096
_PIXELS_PER_WARP = 512  # sixteen per thread and tensor


@triton.jit
def _direction_scale(grad_squared, step_size):
    """step_size / max(|grad_x|, 1e-12) from the sum of squares; a NaN gradient makes it NaN."""
    return step_size / tl.maximum(tl.sqrt_rn(grad_squared), 1e-12, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _shrink(delta_squared, epsilon):
    """min(1, epsilon / |delta|) from the sum of squares; a NaN gives NaN, so that the whole sample becomes NaN."""
    delta_norm = tl.sqrt_rn(delta_squared)
    return tl.where(delta_norm <= epsilon, 1.0, epsilon / delta_norm)


@triton.jit
def _project(stepped, x_natural, shrink, lower, upper):
    """Pixels of a sample after delta shrinks by a factor; factor 1 keeps the pixels bit for bit."""
    return clip(tl.where(shrink == 1.0, stepped, x_natural + (stepped - x_natural) * shrink), lower, upper)


@triton.jit
def _l2_step_kernel(
    x_adv_ptr,  # [B, num_pixels] fp32, mutated
    x_natural_ptr,  # [B, num_pixels] fp32
    grad_x_ptr,  # [B, num_pixels]
    num_pixels,
    step_size,
    epsilon,
    lower,
    upper,
    BLOCK_PIXELS: tl.constexpr,
):
    """Each program handles one whole sample; every input is read once and x_adv written once."""
    pixels = tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    sample = tl.program_id(0).to(tl.int64) * num_pixels
    grad_x = tl.load(grad_x_ptr + sample + pixels, mask=inside, other=0.0).to(tl.float32)
    x_natural = tl.load(x_natural_ptr + sample + pixels, mask=inside, other=0.0)
    x_adv = tl.load(x_adv_ptr + sample + pixels, mask=inside, other=0.0)
    stepped = x_adv + grad_x * _direction_scale(tl.sum(grad_x * grad_x), step_size)
    delta = stepped - x_natural
    shrink = _shrink(tl.sum(delta * delta), epsilon)
    tl.store(x_adv_ptr + sample + pixels, _project(stepped, x_natural, shrink, lower, upper), mask=inside)


@triton.jit
def _load_stepped(x_adv_ptr, x_natural_ptr, grad_x_ptr, direction_scale, pixels, inside):
    """Returns one block of x_adv moved along the gradient, and of x_natural; both are 0 outside the sample."""
    grad_x = tl.load(grad_x_ptr + pixels, mask=inside, other=0.0).to(tl.float32)
    x_natural = tl.load(x_natural_ptr + pixels, mask=inside, other=0.0)
    x_adv = tl.load(x_adv_ptr + pixels, mask=inside, other=0.0)
    return x_adv + grad_x * direction_scale, x_natural


@triton.jit
def _l2_step_looped_kernel(
    x_adv_ptr,  # [B, num_pixels] fp32, mutated
    x_natural_ptr,  # [B, num_pixels] fp32
    grad_x_ptr,  # [B, num_pixels]
    num_pixels,
    step_size,
    epsilon,
    lower,
    upper,
    BLOCK_PIXELS: tl.constexpr,
):
    """Each program handles one sample in passes for |grad_x|, |delta|, result; reads grad_x thrice, the rest twice."""
    sample = tl.program_id(0).to(tl.int64) * num_pixels
    x_adv_ptr += sample
    x_natural_ptr += sample
    grad_x_ptr += sample
    grad_squares = tl.zeros([BLOCK_PIXELS], tl.float32)
    for start in range(0, num_pixels, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        grad_x = tl.load(grad_x_ptr + pixels, mask=pixels < num_pixels, other=0.0).to(tl.float32)
        grad_squares += grad_x * grad_x
    scale = _direction_scale(tl.sum(grad_squares), step_size)

    delta_squares = tl.zeros([BLOCK_PIXELS], tl.float32)
    for start in range(0, num_pixels, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        inside = pixels < num_pixels
        stepped, x_natural = _load_stepped(x_adv_ptr, x_natural_ptr, grad_x_ptr, scale, pixels, inside)
        delta_squares += (stepped - x_natural) * (stepped - x_natural)
    shrink = _shrink(tl.sum(delta_squares), epsilon)

    for start in range(0, num_pixels, BLOCK_PIXELS):
        pixels = start + tl.arange(0, BLOCK_PIXELS)
        inside = pixels < num_pixels
        stepped, x_natural = _load_stepped(x_adv_ptr, x_natural_ptr, grad_x_ptr, scale, pixels, inside)
        tl.store(x_adv_ptr + pixels, _project(stepped, x_natural, shrink, lower, upper), mask=inside)


def _launch(x_adv, x_natural, grad_x, *scalars):
    num_samples, num_pixels = x_adv.shape[0], x_adv[0].numel()
    if num_pixels <= MAX_BLOCK_PIXELS:
        kernel, block = _l2_step_kernel, max(_PIXELS_PER_WARP, triton.next_power_of_2(num_pixels))
    else:
        kernel, block = _l2_step_looped_kernel, LOOPED_BLOCK_PIXELS
    tensors = x_adv, x_natural, grad_x
    kernel[(num_samples,)](*tensors, num_pixels, *scalars, block, num_warps=block // _PIXELS_PER_WARP)


def l2_step(
    x_adv: torch.Tensor,
    x_natural: torch.Tensor,
    grad_x: torch.Tensor,
    step_size: float,
    epsilon: float,
    lower: float,
    upper: float,
) -> None:
    """Mutates x_adv [B, ...] fp32; x_natural: fp32, grad_x: any float dtype, both of that shape, any strides."""
    scalars = step_size, epsilon, lower, upper
    launch_in_place(lambda *operands: _launch(*operands, *scalars), x_adv, x_natural, grad_x)
