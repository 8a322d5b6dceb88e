"""Processes that are forked from one that has imported everything, as new interpreters would take seconds to start."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "fastadaad.cli",
        "fastadaad.cli.comparison.compare",
        "fastadaad.cli.machine_report",
        "sklearn.datasets",
        "torch._dynamo",
    ]
)


class ForkedChild:
    """Process that calls `target` and prints to `output`, with the interface of faults_run.Child.

    Args:
        target: Function that returns the exit code.
        output: File of standard output and standard error.
        *arguments: Arguments of `target`.
        daemon: The process ends with this program; it then has no workers of its own.
    """

    def __init__(self, target: Callable[..., int], output: Path, *arguments: object, daemon: bool = True) -> None:
        self._process = FORKS.Process(target=_call, args=(target, output, arguments), daemon=daemon)
        self._process.start()

    def poll(self) -> int | None:
        """Returns the exit code, or None while the process runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends a signal to a process that runs."""
        if self.poll() is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def wait(self) -> int:
        """Waits for the end and returns the exit code."""
        self._process.join()
        assert self._process.exitcode is not None
        return self._process.exitcode


def _call(target: Callable[..., int], output: Path, arguments: tuple[object, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    raise SystemExit(target(*arguments))
