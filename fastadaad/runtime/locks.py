"""Locks between processes, which end with the process that has them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()


def _let_go() -> None:
    """In a new worker that reads data, whose copies would hold the locks of a parent that is killed for seconds."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process got the lock of `path`, a file or a folder that exists; nobody else gets it meanwhile."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    _held.add(descriptor)
    try:
        yield True
    finally:
        _held.remove(descriptor)
        os.close(descriptor)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One process at a time trains in `folder`. Raises ValueError where another one does."""
    with locked(folder) as own:  # the folder itself, so that no file stays behind
        if not own:
            remedy = "wait until it has ended, or give another --run-folder"
            raise ValueError(f"another process trains in {folder}: {remedy}")
        yield
