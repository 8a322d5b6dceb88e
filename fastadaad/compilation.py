"""torch.compile as the package uses it."""

import inspect
from collections.abc import Callable
from typing import Any

import torch


def one_graph(function: Callable, **options: Any) -> Callable:
    """`function` compiled by torch.compile as one graph per shape of its inputs; `options` are torch.compile's.

    Where torch can, each call of this counts its recompilations for itself: without that, a process that trains nine
    students one after the other meets torch's limit, which is per function.
    """
    options = {"fullgraph": True, "dynamic": False} | options
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options.setdefault("isolate_recompiles", True)
    return torch.compile(function, **options)
