"""Emulation of a CUDA graph without a GPU: a callable is recorded operation by operation with make_fx, and replayed.

Like a graph, the record refers to existing tensors by their addresses and freezes everything else. It does not emulate
streams, the allocator and CUDA's own restrictions during a capture.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental import proxy_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from bench.host_sync import HostSyncWatch
from fastadaad.runtime.cuda_graph import NUM_WARM_UP_RUNS, Replay, kept_values


def record_with_make_fx(
    run: Callable[[], Any], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Replay:
    """Replacement of record_cuda_graph, with the same warm-up and static outputs."""
    for _ in range(NUM_WARM_UP_RUNS):
        run()
    # Without the fake tensors that describe each value: nothing reads them, and they take half of the time.
    with mock.patch.object(proxy_tensor, "set_meta", lambda proxy, value: proxy):
        recorded = proxy_tensor.make_fx(run)()
    outputs = None

    def replay() -> Any:
        nonlocal outputs
        # A record holds neither grad mode nor autocast, only the operations that resulted from them.
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
    """Checks that a graph of `function` would replay it correctly.

    Args:
        function: Function to record.
        static_tensors: All tensors that it may read and write besides its own.
        generators: All generators that it may draw from.
        changes: Actions of a user between two calls, such as setting a learning rate, which a replay must respect.

    Raises:
        AssertionError: A graph would freeze something; the message names it.
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
        assert same, f"frozen: after {number} changes, a replay differs from the function"


class _HostReadWatch(TorchFunctionMode):
    """Records reads that are not an operation for a tensor on the CPU."""

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
            recorded = proxy_tensor.make_fx(function)()
        except RuntimeError as error:
            if "get value out of a tracing tensor" in str(error):
                raise AssertionError(f"host read: {error}") from error
            raise
    assert not watch.seen + reads.seen, f"host read: {watch.seen + reads.seen}"
    return recorded


def _two_runs(function: Callable[[], Any], static_tensors: Sequence[Tensor], generators: Sequence) -> list[Tensor]:
    """Outputs of two runs and the final static tensors, which are restored afterwards."""
    left = []
    with kept_values(static_tensors, generators):
        for _ in range(2):
            left += [output.detach().clone() for output in tree_leaves(function())]
        left += [tensor.detach().clone() for tensor in static_tensors]
    return left
