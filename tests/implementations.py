"""The implementations of an operation that exist here, and what every registered operation must pass."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastadaad import ops

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(op: str, *arguments):
    """The plain torch version."""
    stem = op.removesuffix("_")
    return getattr(importlib.import_module(f"fastadaad.ops.{stem}"), f"{stem}_ref")(*arguments)


def registered(op: str, *arguments):
    """What users get: the C++ kernel for this processor, where it is built."""
    return getattr(torch.ops.fastadaad, op)(*arguments)


def baseline(op: str, *arguments):
    """The C++ kernel for any processor."""
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
    """The arguments with tensors cloned, so that an operation in place leaves the originals alone."""
    return tuple(argument.clone() if isinstance(argument, Tensor) else argument for argument in arguments)


def assert_versions_agree(op: str, *arguments) -> None:
    """The C++ kernel gives the same bits in the version for any processor and in the one for this processor."""
    outcomes = []
    for run in CPP:
        inputs = clones(arguments)
        outcomes.append((inputs, run(op, *inputs)))
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=0, atol=0, equal_nan=True)


def assert_registered(op: str, public: Callable, *arguments) -> None:
    """opcheck passes, and the public function gives the same bits under torch.compile(fullgraph=True)."""
    torch.library.opcheck(getattr(torch.ops.fastadaad, op).default, clones(arguments))
    compiled = torch.compile(public, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*clones(arguments)), public(*clones(arguments)), rtol=0, atol=0, equal_nan=True)
