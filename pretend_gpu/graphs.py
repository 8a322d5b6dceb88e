"""CUDA graphs: operations are recorded during a capture, leave no trace then, and run at each replay.

During a capture each operation runs, so that the next one has shapes and values, and is undone when the capture ends:
what it changed has its old values again, and what it made is NaN. So a program that expects results of a capture, or a
replay to see a replaced tensor, goes wrong here as on a device.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import random
from .books import LIBRARY
from .memory import bytes_of, fill_with_nan


@dataclass
class Recording:
    """Operations of one capture, on the addresses of their tensors."""

    operations: list[Callable[[], Any]] = field(default_factory=list)
    old_values: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Memory that the capture changed, with a copy from before, in the order of the changes."""
    made: list[Tensor] = field(default_factory=list)
    spans: set[tuple[int, int]] = field(default_factory=set)
    """Address and number of bytes of all tensors that a replay touches."""

    def keep(self, changed: Iterable[Tensor], touched: Iterable[Tensor]) -> None:
        """Notes tensors before an operation of the capture runs."""
        self.old_values += [(tensor, tensor.clone()) for tensor in changed if tensor.numel()]
        self.spans |= {span for span in map(bytes_of, touched) if span[1]}

    def undo(self) -> None:
        """Restores the memory as it was before the capture."""
        for tensor, values in reversed(self.old_values):
            tensor.copy_(values)
        for tensor in self.made:
            fill_with_nan(tensor)
        self.old_values, self.made = [], []


recordings: dict[int, Recording] = {}
_last_capture = 0
_failure: list[BaseException] = []


def recording(capture: int) -> Recording:
    """Returns the recording of a capture that goes on."""
    return recordings.setdefault(capture, Recording())


@ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_long)
def _run(graph: int, number: int) -> None:
    """Runs one operation of a replay; an error is kept for the caller of the replay."""
    if _failure:
        return
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            recordings[graph].operations[number]()
    except BaseException as error:  # it would get lost in C++
        _failure.append(error)


@ctypes.CFUNCTYPE(None, ctypes.c_long, ctypes.c_int)
def _ended(capture: int, is_valid: int) -> None:
    global _last_capture
    _last_capture = capture
    recording(capture).undo()
    if not is_valid:
        del recordings[capture]


def install() -> None:
    """Lets captures be recorded and replays run."""
    LIBRARY.pretend_gpu_set_callbacks(_run, _ended)
    graph_class = torch.cuda.CUDAGraph
    capture_end, replay = graph_class.capture_end, graph_class.replay

    def capture_end_here(graph: torch.cuda.CUDAGraph) -> None:
        capture_end(graph)
        graph.pretend_gpu_capture = _last_capture
        weakref.finalize(graph, recordings.pop, _last_capture, None)

    def replay_here(graph: torch.cuda.CUDAGraph) -> None:
        check_memory(recordings[graph.pretend_gpu_capture], graph.pool())
        replay(graph)
        if _failure:
            raise _failure.pop()

    graph_class.capture_end, graph_class.replay = capture_end_here, replay_here


def check_memory(recorded: Recording, pool: tuple[int, int]) -> None:
    """Raises RuntimeError if a replay would touch memory that is neither in use nor in the graph's own pool."""
    usable = []
    for segment in torch.cuda.memory.memory_snapshot():
        # A graph may use all memory of its pool, however the allocator divides it.
        is_own = tuple(segment["segment_pool_id"]) == tuple(pool)
        pieces = [segment] if is_own else [block for block in segment["blocks"] if block["state"] == "active_allocated"]
        sizes = [piece["total_size"] if is_own else piece["size"] for piece in pieces]
        usable += [(piece["address"], piece["address"] + size) for piece, size in zip(pieces, sizes, strict=True)]
    for address, num_bytes in recorded.spans:
        if not any(begin <= address and address + num_bytes <= end for begin, end in usable):
            raise RuntimeError(f"a replay touches {num_bytes} bytes that were freed after the capture")


def recorded_draw(
    generator: torch.Generator, number: int, run: Callable[[torch.Generator], Any]
) -> tuple[Any, Callable[[], Any]]:
    """Runs a draw of a capture without advancing the generator; returns its result, and the draw of a replay."""
    return random.draw_at(0, number, run), lambda: random.draw(generator, run)
