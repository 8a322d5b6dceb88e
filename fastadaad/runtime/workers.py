"""Worker processes that read data: none outlives its reader, and a killed one ends a command with one line."""

import atexit
import multiprocessing.util  # noqa: F401  its handler at exit waits for all children: it must run after ours
import os
import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import DataLoader

EXIT_CODE = os.EX_TEMPFAIL
"""Exit code of a command that lost a worker: 75, after which a scheduler may start it again."""

# torch's messages; it raises them between any two instructions of the main thread.
LOST = re.compile(r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)")

_running: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()
"""Iterators with workers, and the process that started them."""


class LostWorkerError(RuntimeError):
    """A process or a thread that reads data has died; the message is one line with the remedy."""


def lost_worker(error: BaseException) -> LostWorkerError | None:
    """Returns an error of torch about a killed worker as a LostWorkerError, and None for another error."""
    if isinstance(error, LostWorkerError):
        return error
    if not (isinstance(error, RuntimeError) and LOST.search(str(error))):
        return None
    return _lost(str(error))


def _lost(reason: str) -> LostWorkerError:
    return LostWorkerError(
        f"a process that reads data has died ({' '.join(reason.split())}), perhaps for lack of memory: resume the run "
        "(train: with --resume), with fewer data.num_workers or more memory"
    )


@contextmanager
def batches_of(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Yields the iterator of `loader`, and ends its workers afterwards, also those that ignore SIGTERM.

    Raises:
        LostWorkerError: A worker has died.
    """
    batches = iter(loader)
    if loader.num_workers:
        _running[batches] = os.getpid()
    try:
        yield batches
    except (RuntimeError, OSError, EOFError) as error:
        # A batch lies in memory that its worker hands over, so that reading it fails too.
        if lost := lost_worker(error) or _dead_worker(batches):
            raise lost from error
        raise
    finally:
        if loader.num_workers:
            _end(batches)


def _dead_worker(batches: Any) -> LostWorkerError | None:
    """Returns an error if a worker of an iterator has died, for which it waits a moment."""
    for worker in getattr(batches, "_workers", ()):
        worker.join(0.2)
        if worker.exitcode:
            return _lost(f"process {worker.pid} with exit code {worker.exitcode}")
    return None


def _end(batches: Any) -> None:
    """Ends the workers of an iterator, first by torch's way, which stops watching them."""
    _running.pop(batches, None)
    batches._shutdown_workers()
    for worker in batches._workers:
        worker.kill()
        worker.join()


@atexit.register
def _end_all() -> None:
    """Ends the workers of iterators that a traceback still holds; a forked process has none of its own."""
    for batches, process in list(_running.items()):
        if process == os.getpid():
            _end(batches)
