"""CUDA graphs: a function is captured once on static buffers, then replayed without its Python code.

A replay runs the recorded kernels on the recorded addresses and nothing else. A captured function must therefore follow
these rules:

- Every value that changes between calls is an input, or a tensor that is updated in place, learning rates included.
- No value is read on the host or used as a shape.
- Tensors are written in place; a replaced tensor goes unnoticed.
- Random numbers come from generators that the graph knows.
- Effects in Python (a module's mode, a counter, a branch on the epoch) happen at the capture only.

tests/recorded_graph.py checks these rules without a GPU.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from fastadaad.runtime.torch_settings import measured_algorithms

# Runs the recorded work and returns its outputs, which are the same tensors at every call.
Replay = Callable[[], Any]
# (function without arguments, device of its tensors, its generators) -> its replay, after warm-up runs.
Record = Callable[[Callable[[], Any], torch.device, Sequence[torch.Generator]], Replay]

# Same as torch.cuda.make_graphed_callables: enough for libraries to choose kernels and for torch.compile to compile.
NUM_WARM_UP_RUNS = 3


def record_cuda_graph(
    run: Callable[[], Any], device: torch.device, generators: Sequence[torch.Generator] = ()
) -> Replay:
    """Captures a function as a CUDA graph, after NUM_WARM_UP_RUNS runs with all their effects on the device.

    Args:
        run: Function to capture.
        device: CUDA device of its tensors.
        generators: Generators that it draws from; torch finds them by itself.

    Returns:
        The replay of the graph.

    Raises:
        ValueError: The device is not a CUDA device.
    """
    if device.type != "cuda":
        raise ValueError(f"the inputs are on {device}, and CUDA graphs need a CUDA device: set mode=eager")
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), measured_algorithms():
            for _ in range(NUM_WARM_UP_RUNS):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: work of a data loader's thread on the device does not break the capture.
        with (
            measured_algorithms(),
            _gradients_on_the_captured_stream(),
            torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
        ):
            outputs = run()

    def replay() -> Any:
        graph.replay()
        return outputs

    return replay


@contextmanager
def _gradients_on_the_captured_stream() -> Iterator[None]:
    """Lets gradients be captured although the caller keeps a loss that was computed before on another stream.

    Such a loss keeps autograd's nodes of the parameters alive, which remember that stream. Without this, torch 2.14
    refuses the capture.
    """
    graph: Any = torch.autograd.graph
    before = torch._C._override_stale_capture_stream()
    graph.set_override_stale_capture_stream(True)
    try:
        yield
    finally:
        graph.set_override_stale_capture_stream(before)


class CapturedCall:
    """Function that is captured at its first call, for the shapes, dtypes and devices of its inputs, then replayed.

    Inputs are copied into static buffers and may have any memory layout. Outputs are static as well: clone them before
    the next call, which overwrites them. A call with other inputs, such as a smaller last batch, runs the function
    uncaptured; the first of these calls warns.

    Args:
        function: Takes tensors and returns tensors in tuples, lists or dicts, by the rules of this module. Grad mode
            and autocast are those of the first call.
        state: Existing tensors that the function changes in place. They keep their values during the warm-up runs.
        generators: Generators that the function draws from, with torch's own of the device if it is used. Each replay
            draws the numbers that an eager call would draw.
        record: Captures the function; tests replace it.
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
        """Returns the function's outputs for `inputs`, of which there is at least one."""
        if self._replay is None:
            self._static_inputs = tuple(x.detach().clone() for x in inputs)
            self._replay = self._capture(self._static_inputs)
        if _signature(inputs) != _signature(self._static_inputs):
            return self._call_uncaptured(inputs)
        with torch.no_grad():
            for static, x in zip(self._static_inputs, inputs, strict=True):
                static.copy_(x)
        # torch does not notice the writes of a replay: increment the version counters that show a change of the state.
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
    """Restores the values of `tensors`, in place, and the positions of `generators` after the context."""
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
    """Makes autocast convert the weights at each use: a graph would keep reading a cached conversion."""
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
    """Runs two functions at the same time on two streams of a CUDA device; on other devices one after the other.

    A backward pass through both results runs on both streams too, since autograd uses the stream of each operation's
    forward pass.

    Args:
        device: Device of both functions.
        on_current: Function for the current stream.
        on_side: Function for a side stream; its result is a tensor or a tuple with tensors. Neither function reads
            what the other writes.

    Returns:
        Both results.
    """
    if device.type != "cuda":
        on_side_result = on_side()
        return on_current(), on_side_result
    current, side = torch.cuda.current_stream(device), _side_stream(device)
    side.wait_stream(current)
    # The host issues on_side first: memory that on_current frees cannot return to the side stream before the next
    # wait_stream, when the last reader on the current stream is done.
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
    """Returns one stream per device, since torch's allocator keeps separate memory for each stream."""
    return torch.cuda.Stream(device)
