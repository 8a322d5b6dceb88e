"""Helpers of the two logit kernels: block sizes for a number of classes, and the log-softmax of a block of rows."""

from typing import NamedTuple

import triton
import triton.language as tl

# Longer rows go to the looped kernels: with 16,384 classes kl_grad would spill registers (sm_80, sm_90 and sm_100).
MAX_BLOCK_CLASSES = 8_192
LOOPED_BLOCK_CLASSES = 4_096
_ELEMENTS_PER_WARP = 256  # eight per thread: two 128-bit loads of fp32
_MAX_WARPS = 16  # leaves 128 registers to each thread


class Tile(NamedTuple):
    """Rows and classes of one program's block, and the number of warps that compute it."""

    block_rows: int
    block_classes: int
    num_warps: int


def tile_for(num_classes: int) -> Tile:
    """Returns the block for rows of `num_classes`; short rows share a warp, whose reductions need no barrier."""
    widest = MAX_BLOCK_CLASSES if num_classes <= MAX_BLOCK_CLASSES else LOOPED_BLOCK_CLASSES
    block_classes = min(max(16, triton.next_power_of_2(num_classes)), widest)
    block_rows = max(1, _ELEMENTS_PER_WARP // block_classes)
    num_warps = min(_MAX_WARPS, block_rows * block_classes // _ELEMENTS_PER_WARP)
    return Tile(block_rows, block_classes, num_warps)


@triton.jit
def log_softmax(logits, inverse_temperature):
    """log softmax(logits / temperature) along axis 1 of [R, N] fp32; -inf stays -inf in a row with another class."""
    shifted = (logits - tl.max(logits, axis=1, keep_dims=True)) * inverse_temperature
    return shifted - tl.log(tl.sum(tl.exp(shifted), axis=1, keep_dims=True))


@triton.jit
def raise_peak(peak, logits, inverse_temperature):
    """Online softmax, next block [N]: new peak, then its rise and logits - new peak, both over temperature."""
    new_peak = tl.maximum(peak, tl.max(logits, axis=0))
    return new_peak, (new_peak - peak) * inverse_temperature, (logits - new_peak) * inverse_temperature
