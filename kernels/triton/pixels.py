"""Helpers of the step kernels: operands in one dense layout, the flat launch, and the clip."""

import torch
import triton
import triton.language as tl

BLOCK_PIXELS = 1024  # eight per thread of 128: two 128-bit loads and stores of fp32
NUM_WARPS = 4


def is_dense(x: torch.Tensor) -> bool:
    """Returns True if the samples of x [B, ...] follow each other, each a gapless block with its axes in any order."""
    gapless = 1
    batch, *axes = zip(x.stride(), x.shape, strict=True)
    for stride, size in [*sorted(axes), batch]:
        if size > 1 and stride != gapless:
            return False
        gapless *= size
    return True


def in_layout_of(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Returns x if it has the strides of the dense `target` of the same shape, otherwise a copy with these strides."""
    if all(a == b for a, b, size in zip(x.stride(), target.stride(), x.shape, strict=True) if size > 1):
        return x
    return torch.empty_strided(x.shape, target.stride(), dtype=x.dtype, device=x.device).copy_(x)


def launch_in_place(launch, x_adv: torch.Tensor, *operands: torch.Tensor) -> None:
    """Calls launch(x_adv, *operands) with all in one dense layout; mutates x_adv, through a copy if it has gaps."""
    if x_adv.numel() == 0:
        return
    dense = x_adv if is_dense(x_adv) else x_adv.contiguous()
    with torch.cuda.device_of(x_adv):
        launch(dense, *(in_layout_of(operand, dense) for operand in operands))
        if dense is not x_adv:
            x_adv.copy_(dense)


def launch_flat(kernel, x_adv, x_natural, third, *scalars: float) -> None:
    """Runs an elementwise kernel over x_adv [B, ...], mutated, x_natural and a third tensor of the same shape."""

    def launch(*operands):
        num_pixels = operands[0].numel()
        grid = (triton.cdiv(num_pixels, BLOCK_PIXELS),)
        # No fused multiply-add, so that each result is rounded as in torch.
        kernel[grid](*operands, num_pixels, *scalars, BLOCK_PIXELS, num_warps=NUM_WARPS, enable_fp_fusion=False)

    launch_in_place(launch, x_adv, x_natural, third)


@triton.jit
def clip(x, lower, upper):
    """min(max(x, lower), upper); a NaN stays NaN, as in torch.clamp."""
    x = tl.maximum(x, lower, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, upper, propagate_nan=tl.PropagateNan.ALL)
