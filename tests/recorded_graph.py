"""A CUDA graph's discipline without a GPU: a callable recorded operation by operation with make_fx, and replayed.

As a graph, the record holds the tensors that were there by their addresses, and everything else as it was. It knows
nothing of streams, of the allocator and of what CUDA itself forbids during a capture.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bench.host_sync import HostSyncWatch
from fastadaad.runtime.cuda_graph import NUM_WARM_UP_RUNS, Replay, kept_values


def record_with_make_fx(
    run: Callable[[], Any], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Replay:
    """In record_cuda_graph's place: warms up as it does, and its outputs are static as there."""
    for _ in range(NUM_WARM_UP_RUNS):
        run()
    recorded = make_fx(run)()
    outputs = None

    def replay() -> Any:
        nonlocal outputs
        # A record holds neither grad mode nor autocast: its operations are what was left of both.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            fresh = recorded()
            if outputs is None:
                outputs = fresh
            else:
                tree_map(lambda static, x: None if x is None else static.copy_(x), outputs, fresh)
        return outputs

    return replay


def assert_replayable(
    function: Callable[[], Any],
    static_tensors: Sequence[Tensor],
    *,
    generators: Sequence[torch.Generator] = (),
    changes: Sequence[Callable[[], Any]] = (),
) -> None:
    """Raises AssertionError that says what of `function` a graph would freeze.

    static_tensors: all tensors that it may read and write besides its own. generators: all that it may draw from.
    changes: what a user does between two calls, such as setting a learning rate; a replay has to see each of them.
    """
    with kept_values(static_tensors, generators):
        for _ in range(NUM_WARM_UP_RUNS):
            function()
        recorded = _record_without_host_reads(function)
    known = {tensor.untyped_storage().data_ptr() for tensor in static_tensors}
    for node in recorded.graph.find_nodes(op="get_attr"):
        constant = getattr(recorded, node.target)
        if isinstance(constant, Tensor):
            shape = list(constant.shape)
            assert constant.untyped_storage().data_ptr() in known, f"frozen tensor {shape} is not a static one: {node}"
        else:
            # The record has its own Python object of the same generator.
            registered = [generator._cdata for generator in generators]
            assert constant._cdata in registered, f"draws from a generator that is not registered: {node}"
    for number, change in enumerate((lambda: None, *changes)):
        change()
        expected = _two_runs(function, static_tensors, generators)
        replayed = _two_runs(recorded, static_tensors, generators)
        same = len(expected) == len(replayed) and all(map(torch.equal, expected, replayed))
        assert same, f"frozen: after {number} changes, a replay is not what the function itself does"


class _HostReadWatch(TorchFunctionMode):
    """Writes down the reads that are no operation where the tensor is on the CPU already."""

    READS = (Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.READS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


def _record_without_host_reads(function: Callable[[], Any]) -> GraphModule:
    with _HostReadWatch() as reads, HostSyncWatch() as watch:
        try:
            recorded = make_fx(function)()
        except RuntimeError as error:
            if "get value out of a tracing tensor" in str(error):
                raise AssertionError(f"host read: {error}") from error
            raise
    assert not watch.seen + reads.seen, f"host read: {watch.seen + reads.seen}"
    return recorded


def _two_runs(function: Callable[[], Any], static_tensors: Sequence[Tensor], generators: Sequence) -> list[Tensor]:
    """The outputs of two runs and what they leave in the static tensors, which come back as they were."""
    left = []
    with kept_values(static_tensors, generators):
        for _ in range(2):
            left += [output.detach().clone() for output in tree_leaves(function())]
        left += [tensor.detach().clone() for tensor in static_tensors]
    return left
