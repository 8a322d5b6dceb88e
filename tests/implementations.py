"""The implementations of an operation on this machine, and checks that every registered operation must pass."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastadaad import ops

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(op: str, *arguments):
    """Runs the plain torch reference."""
    stem = op.removesuffix("_")
    return getattr(importlib.import_module(f"fastadaad.ops.{stem}"), f"{stem}_ref")(*arguments)


def registered(op: str, *arguments):
    """Runs the operation as users do: the C++ kernel for this processor if it is built."""
    return getattr(torch.ops.fastadaad, op)(*arguments)


def baseline(op: str, *arguments):
    """Runs the C++ kernel for any processor."""
    torch.ops.fastadaad._use_baseline(True)
    try:
        return registered(op, *arguments)
    finally:
        torch.ops.fastadaad._use_baseline(False)


CPP = (registered, baseline) if any(row.backend == "c++" for row in ops.report()) else ()
IMPLEMENTATIONS = (reference, *CPP)
every_implementation = pytest.mark.parametrize("run", IMPLEMENTATIONS, ids=lambda run: run.__name__)
every_float_dtype = pytest.mark.parametrize("dtype", FLOAT_DTYPES, ids=str)


def clones(arguments: tuple) -> tuple:
    """Clones the tensors among the arguments, so that an in-place operation leaves the originals unchanged."""
    return tuple(argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments)


def assert_versions_agree(op: str, *arguments) -> None:
    """Asserts that the C++ kernels for any processor and for this processor give the same bits."""
    outcomes = []
    for run in CPP:
        inputs = clones(arguments)
        outcomes.append((inputs, run(op, *inputs)))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=0, atol=0, equal_nan=True)


def assert_registered(op: str, public: Callable, *arguments) -> None:
    """Asserts that opcheck passes, and that torch.compile(fullgraph=True) does not change the bits."""
    torch.library.opcheck(getattr(torch.ops.fastadaad, op).default, clones(arguments))
    compiled = torch.compile(public, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*clones(arguments)), public(*clones(arguments)), rtol=0, atol=0, equal_nan=True)
