"""Kernel tests run on the GPU where there is one, otherwise in Triton's interpreter, under a guard of all addresses."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret
collect_ignore = [] if INTERPRETED else ["test_bounds.py"]  # the guard is the interpreter's own


@pytest.fixture(autouse=True)
def guarded_kernels() -> Iterator[list]:
    """Guard every interpreted launch, and list them; numpy's warnings about inf - inf are no news."""
    if not INTERPRETED:
        yield []
        return
    from bounds import bounds_guard

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"), bounds_guard() as launches:
        yield launches


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: CUDA, or the CPU when they are interpreted."""
    return torch.device("cpu" if INTERPRETED else "cuda")
