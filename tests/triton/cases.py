"""Shared by the tests of the kernels: sizes, dtypes and the measure of accuracy."""

import torch
import triton
from accuracy import assert_as_accurate_as_torch
from fastadaad.kernels.triton.softmax import MAX_BLOCK_CLASSES
from torch import Tensor

LOOPED = MAX_BLOCK_CLASSES + 77  # three blocks of the looped kernel, the last one ragged
# Several rows per program with a ragged last program; then one row per program; then the looped kernel.
SIZES = [(37, 1), (37, 2), (37, 10), (37, 100), (5, 257), (3, 1_000), (2, LOOPED)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def assert_accurate(output: Tensor, torch_output: Tensor, double: Tensor) -> None:
    """Applies the 2x rule; for bf16 the interpreter truncates, so one unit in the last place is allowed."""
    assert output.dtype == torch_output.dtype
    if output.dtype == torch.bfloat16 and triton.knobs.runtime.interpret:
        torch.testing.assert_close(output.double(), double, rtol=2**-7, atol=1e-6)
    else:
        assert_as_accurate_as_torch(output, torch_output, double)
