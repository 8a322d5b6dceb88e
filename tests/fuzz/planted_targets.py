"""Readers with one fault each, which the harness must detect."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from target import Part, Target
from worker import MEMORY_BYTES

TOO_MUCH = 2 * MEMORY_BYTES


class PlantedError(ValueError):
    """The documented error."""


def _hang() -> None:
    while True:
        pass


def _hang_in_c() -> None:
    """Hangs outside Python code, so that Python cannot handle a signal."""
    ctypes.CDLL(None).sleep(1_000_000)


def _allocate(take: Callable[[int], object]) -> Callable[[], None]:
    """Returns a reader that reports a failed allocation as a corrupt file."""

    def read() -> None:
        try:
            take(TOO_MUCH)
        except Exception as error:
            raise PlantedError("file") from error

    return read


def _torch_empty(size: int) -> object:
    import torch  # imported here, as it takes longer than the limit of the other reads

    return torch.empty(size, dtype=torch.uint8)


def _raise(error: Exception) -> Callable[[], None]:
    def read() -> None:
        raise error

    return read


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "none": (lambda: None, ""),
    "refused": (_raise(PlantedError("FOLDER is no file")), ""),
    "hang": (_hang, "it hangs (no end of computing)"),
    "sleep": (lambda: time.sleep(1_000_000), "it hangs (no end of waiting)"),
    "hang in c": (_hang_in_c, "it hangs (no end of waiting)"),
    "bytearray": (_allocate(bytearray), "it asked for too much memory: PlantedError: file <- MemoryError"),
    "numpy": (_allocate(lambda size: np.ones(size, np.uint8)), "it asked for too much memory: PlantedError: file <- "),
    "in parts": (
        lambda: [np.empty(2**26) for _ in range(TOO_MUCH >> 29)],
        "an exception that is not documented: Memor",
    ),
    "segfault": (lambda: ctypes.string_at(0), "it crashes (SIGSEGV)"),
    "abort": (lambda: os.kill(os.getpid(), signal.SIGABRT), "it crashes (SIGABRT)"),
    "exit": (lambda: os._exit(3), "it crashes (exit code 3)"),
    "exit of Python": (lambda: sys.exit(3), "an exception that is not documented: SystemExit"),
    "another exception": (_raise(ValueError("FOLDER")), "an exception that is not documented: ValueError"),
    "deep": (lambda: _deep(), "an exception that is not documented: RecursionError"),
    "two lines": (_raise(PlantedError("FOLDER\n")), "its message has several lines"),
    "no name": (_raise(PlantedError("it is broken")), "its message names no file: 'it is broken'"),
}


def _deep() -> None:
    _deep()


def _target(fault: Callable[[], object]) -> Target:
    def read(folder: Path) -> None:
        try:
            fault()
        except PlantedError as error:
            raise PlantedError(str(error).replace("FOLDER", str(folder))) from error.__cause__

    return Target(
        write=lambda folder: (folder / "file").write_bytes(b"content") and None,
        read=read,
        parts=(Part(file="file"),),
        error=PlantedError,
    )


TARGETS = {name: _target(fault) for name, (fault, _) in FAULTS.items()} | {"torch": _target(_allocate(_torch_empty))}
