"""Start of the inner loop: x_adv <- clip_[lower, upper](x_natural + scale noise)."""

import torch
import triton
import triton.language as tl

from .pixels import clip, launch_flat


@triton.jit
def _random_start_kernel(
    x_adv_ptr,  # fp32, written only
    x_natural_ptr,  # fp32
    noise_ptr,
    num_pixels,
    scale,
    lower,
    upper,
    BLOCK_PIXELS: tl.constexpr,
):
    """Takes all tensors flat in one layout; every input is read once and x_adv written once."""
    pixels = tl.program_id(0).to(tl.int64) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    inside = pixels < num_pixels
    noise = tl.load(noise_ptr + pixels, mask=inside).to(tl.float32)
    x_natural = tl.load(x_natural_ptr + pixels, mask=inside)
    tl.store(x_adv_ptr + pixels, clip(x_natural + scale * noise, lower, upper), mask=inside)


def random_start(
    x_adv: torch.Tensor, x_natural: torch.Tensor, noise: torch.Tensor, scale: float, lower: float, upper: float
) -> None:
    """Fills x_adv [B, ...] fp32; x_natural (fp32) and noise: that shape, any strides; infinite bounds do not clip."""
    launch_flat(_random_start_kernel, x_adv, x_natural, noise, scale, lower, upper)
