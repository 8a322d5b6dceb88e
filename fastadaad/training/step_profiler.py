"""Profile of some steps of a run: a trace of torch.profiler and, on CUDA, a snapshot of the memory."""

import logging
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fastadaad.runtime.retrying_files import RetryingFiles

log = logging.getLogger(__name__)

# Steps before the trace, in which networks are compiled and captured, and libraries choose kernels.
NUM_WARM_UP_STEPS = 3
# Allocations that the snapshot of the memory remembers, the last ones.
MAX_ALLOCATIONS = 100_000


class StepProfiler:
    """Profiler of a run's steps: a context manager, whose after_step() follows each step.

    A trace that reaches beyond an epoch has the evaluation in between.

    Args:
        num_steps: Number of steps in the trace, after NUM_WARM_UP_STEPS others.
        folder: Folder of trace.json and memory.pickle.
        device: Device of the run.
        files: Writer of the run, which reports a full disk.
    """

    def __init__(self, num_steps: int, folder: Path, device: torch.device, files: RetryingFiles) -> None:
        self._num_steps, self._folder, self._files = num_steps, folder, files
        self._is_cuda = device.type == "cuda"
        self._num_done = 0
        self._is_written = False
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._is_cuda else [])],
            schedule=schedule(skip_first=NUM_WARM_UP_STEPS - 1, wait=0, warmup=1, active=num_steps, repeat=1),
            on_trace_ready=self._write,
            record_shapes=True,
        )

    def __enter__(self) -> "StepProfiler":
        self._profile.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._profile.stop()  # writes the steps so far if the run ends early
        if not self._is_written:
            log.warning(f"no profile was written: the run ended within the first {NUM_WARM_UP_STEPS} steps")
            self._stop_recording_memory()

    def after_step(self) -> None:
        """Counts a step; begins and ends the profile if it is time."""
        self._num_done += 1
        if self._num_done == NUM_WARM_UP_STEPS and self._is_cuda:
            torch.cuda.memory._record_memory_history(max_entries=MAX_ALLOCATIONS, stacks="python")
        if not self._is_written:
            self._profile.step()

    def _write(self, profiler: profile) -> None:
        first = NUM_WARM_UP_STEPS + 1
        if self._num_done < first:
            return
        self._is_written = True
        trace, memory = self._folder / "trace.json", self._folder / "memory.pickle"
        if self._files.attempt(trace.name, lambda: profiler.export_chrome_trace(str(trace))):
            steps = f"steps {first} to {self._num_done}"
            log.info(f"trace of {steps}, to open at https://ui.perfetto.dev: {trace}")
        if self._is_cuda:
            if self._files.attempt(memory.name, lambda: torch.cuda.memory._dump_snapshot(str(memory))):
                log.info(f"memory during these steps, to open at https://pytorch.org/memory_viz: {memory}")
            self._stop_recording_memory()

    def _stop_recording_memory(self) -> None:
        if self._is_cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
