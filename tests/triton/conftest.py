"""Runs the kernel tests on the GPU if there is one, otherwise in Triton's interpreter under the bounds guard."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret
collect_ignore = [] if INTERPRETED else ["test_bounds.py"]  # the guard is the interpreter's own


@pytest.fixture(autouse=True)
def guarded_kernels() -> Iterator[list]:
    """Guards and lists every interpreted launch; silences numpy's warnings about inf - inf."""
    if not INTERPRETED:
        yield []
        return
    from bounds import bounds_guard

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"), bounds_guard() as launches:
        yield launches


@pytest.fixture
def device() -> torch.device:
    """Returns the device of the kernels: CUDA, or the CPU if they are interpreted."""
    return torch.device("cpu" if INTERPRETED else "cuda")
