"""Prints the resources of two kernels with one fault each: one reads its input twice, one exceeds the registers.

Run as a program, without TRITON_INTERPRET, by test_static.py.
"""

import dataclasses
import json

import torch
import triton
import triton.language as tl

from bench.static import Case, measure


@triton.jit
def _reads_twice_kernel(x_adv_ptr, out_ptr, BLOCK_PIXELS: tl.constexpr):
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    first = tl.load(x_adv_ptr + pixels)
    tl.debug_barrier()  # otherwise the compiler merges the two loads
    tl.store(out_ptr + pixels, first + tl.load(x_adv_ptr + pixels))


@triton.jit
def _spills_kernel(x_adv_ptr, out_ptr, BLOCK_PIXELS: tl.constexpr):
    pixels = tl.arange(0, BLOCK_PIXELS)
    x = tl.load(x_adv_ptr + pixels)
    tl.store(out_ptr + pixels, x / tl.sum(x))


def _case(kernel, block: int) -> Case:
    x_adv = torch.empty(block, device="meta")

    def launch():
        kernel[(1,)](x_adv, torch.empty_like(x_adv), block, num_warps=4)

    return Case("planted", launch, ("x_adv_ptr",), ("out_ptr",))


if __name__ == "__main__":
    cases = _case(_reads_twice_kernel, 1_024), _case(_spills_kernel, 65_536)
    print(json.dumps([dataclasses.asdict(measure(case, 90)) for case in cases]))
