"""The 2x rule: the error of an operation against float64 is at most twice plain torch's, plus a floor for its dtype."""

import torch
from torch import Tensor

# A few roundings of the dtype, relative to the largest value, in case torch happens to be exact.
FLOORS = {torch.float32: 2**-21, torch.float16: 2**-12, torch.bfloat16: 2**-9}


def assert_as_accurate_as_torch(out: Tensor, out_torch: Tensor, ref64: Tensor) -> None:
    """Asserts max |out - ref64| <= 2 max |out_torch - ref64| + floor max |ref64| and equal shapes; NaN and inf fail."""
    assert out.shape == out_torch.shape == ref64.shape
    assert out.dtype == out_torch.dtype
    if out.numel() == 0:
        return
    error = (out.double() - ref64).abs().max()
    worst = (out_torch.double() - ref64).abs().max()
    floor = FLOORS[out.dtype] * ref64.abs().max()
    assert error <= 2 * worst + floor, f"error {error:.3e}, torch {worst:.3e}, floor {floor:.3e}"
