"""Locks between processes, which end with the process that has them."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    try:
        yield True
    finally:
        os.close(descriptor)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """One process at a time trains in `folder`. Raises ValueError where another one does."""
    with locked(folder) as own:  # the folder itself, so that no file stays behind
        if not own:
            remedy = "wait until it has ended, or give another --run-folder"
            raise ValueError(f"another process trains in {folder}: {remedy}")
        yield
