"""One process at a time trains in a run's folder; the lock ends with its process."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Nobody else gets the lock of `folder` inside. Raises ValueError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)  # the folder itself, so that no file stays behind
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = "wait until it has ended, or give another --run-folder"
            raise ValueError(f"another process trains in {folder}: {remedy}") from error
        yield
    finally:
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a process trains in `folder` now."""
    try:
        with run_lock(folder):
            return False
    except ValueError:
        return True
