"""Capture and replay: a callable recorded once on static buffers as a CUDA graph, then replayed without its Python.

A replay runs the recorded kernels on the recorded addresses and nothing else. So whatever changes from call to call is
an input, or a tensor that is updated in place (a learning rate too); nothing reads a value on the host or makes a shape
of it; a tensor that the function replaces instead of writing to it is not seen; random numbers come from generators
that the graph knows; and Python's own effects (a module's mode, a counter, a branch on the epoch) happen at the capture
only. tests/recorded_graph.py holds functions to this without a GPU.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

# Runs the recorded work and returns its outputs, whose tensors are the same at every call.
Replay = Callable[[], Any]
# (function without arguments, device of its tensors, generators it draws from) -> its replay, after warm-up runs.
Record = Callable[[Callable[[], Any], torch.device, Sequence[torch.Generator]], Replay]

# As torch.cuda.make_graphed_callables: enough for libraries to pick their kernels and for torch.compile to compile.
NUM_WARM_UP_RUNS = 3


def record_cuda_graph(
    run: Callable[[], Any], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Replay:
    """`run` as a CUDA graph. Its effects on the device take place NUM_WARM_UP_RUNS times meanwhile.

    Raises ValueError for another device.
    """
    if device.type != "cuda":
        raise ValueError(f"the inputs are on {device}, and CUDA graphs need a CUDA device: set mode=eager")
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(NUM_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        _register(graph, generators)
        # thread_local: what a data loader's thread does to the device meanwhile does not break the capture.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = run()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


def _register(graph: torch.cuda.CUDAGraph, generators: Sequence[torch.Generator]) -> None:
    """Make the generators the graph's own. torch 2.14 finds them by itself, warns here, and will drop the method."""
    if hasattr(graph, "register_generator_state"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*register_generator_state")
            for generator in generators:
                graph.register_generator_state(generator)


class CapturedCall:
    """`function(*inputs)`, captured at the first call for its inputs' shapes, dtypes and devices, then replayed.

    function: takes tensors, returns tensors in tuples, lists or dicts; it follows this module's rules. Grad mode and
    autocast are those of the first call.
    state: the tensors that the function changes in place, all of them in existence; they keep their values while the
    capture runs the function to warm up.
    generators: those that the function draws from, torch's own for the device among them. Each replay draws anew, and
    what an eager call would draw.
    record: what captures; tests have a stand-in.

    Inputs are copied, in whatever memory layout they come. The outputs are static as well: the next call overwrites
    them, so clone what has to last. A call with other inputs (a smaller last batch) runs the function itself, and the
    first of them warns.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        state: Sequence[Tensor] = (),
        generators: Sequence[torch.Generator] = (),
        record: Record = record_cuda_graph,
    ) -> None:
        self.function = function
        self.state, self.generators = tuple(state), tuple(generators)
        self.num_uncaptured_calls = 0
        self._record = record
        self._static_inputs: tuple[Tensor, ...] = ()
        self._replay: Replay | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's outputs for `inputs`, at least one tensor."""
        if self._replay is None:
            self._static_inputs = tuple(x.detach().clone() for x in inputs)
            self._replay = self._capture(self._static_inputs)
        if _signature(inputs) != _signature(self._static_inputs):
            return self._call_uncaptured(inputs)
        with torch.no_grad():
            for static, x in zip(self._static_inputs, inputs, strict=True):
                static.copy_(x)
        # A replay writes behind torch's back: who looks at version counters has to see that the state has changed.
        torch.autograd.graph.increment_version(self.state)
        return self._replay()

    def _capture(self, static_inputs: tuple[Tensor, ...]) -> Replay:
        run = functools.partial(self.function, *static_inputs)
        with kept_values(self.state, self.generators), _no_autocast_cache():
            return self._record(run, static_inputs[0].device, self.generators)

    def _call_uncaptured(self, inputs: tuple[Tensor, ...]) -> Any:
        self.num_uncaptured_calls += 1
        if self.num_uncaptured_calls == 1:
            warnings.warn(
                f"captured for inputs {_shapes(self._static_inputs)}, called with {_shapes(inputs)}: such calls run "
                "uncaptured and slower; drop the last, smaller batch to avoid them",
                stacklevel=3,
            )
        return self.function(*inputs)


def _signature(inputs: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(x.shape, x.dtype, x.device) for x in inputs]


def _shapes(inputs: Sequence[Tensor]) -> str:
    return ", ".join(f"{list(x.shape)} {x.dtype} {x.device}" for x in inputs)


@contextmanager
def kept_values(tensors: Sequence[Tensor], generators: Sequence[torch.Generator] = ()) -> Iterator[None]:
    """What happens inside leaves the values of `tensors`, in place, and the positions of `generators` as they were."""
    values = [tensor.detach().clone() for tensor in tensors]
    positions = [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for generator, position in zip(generators, positions, strict=True):
            generator.set_state(position)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast converts the weights anew at each use inside: a graph would keep reading a cached conversion."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


First = TypeVar("First")
Second = TypeVar("Second")


def run_on_two_streams(
    device: torch.device, on_current: Callable[[], First], on_side: Callable[[], Second]
) -> tuple[First, Second]:
    """Both results; on a CUDA device the second function runs on a side stream, beside the first.

    Tensors of on_side's are its result or stand in it as a tuple. Neither function reads what the other writes.
    Elsewhere one runs after the other. A backward pass through both results runs on both streams too: autograd takes
    the stream of each operation's forward.
    """
    if device.type != "cuda":
        on_side_result = on_side()
        return on_current(), on_side_result
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    # First in the host's order too: memory that on_current frees cannot come back to the side stream before the next
    # wait_stream, when its last reader on the current stream is done.
    with torch.cuda.stream(side):
        on_side_result = on_side()
    on_current_result = on_current()
    current.wait_stream(side)
    for tensor in on_side_result if isinstance(on_side_result, tuple) else (on_side_result,):
        if isinstance(tensor, Tensor):
            tensor.record_stream(current)
    return on_current_result, on_side_result


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device, since torch's allocator keeps the memory of each stream apart."""
    return torch.cuda.Stream(device)
