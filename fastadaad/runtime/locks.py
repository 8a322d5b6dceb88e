"""File locks between processes. The kernel releases a lock when its process ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_held: set[int] = set()


def close_inherited() -> None:
    """Closes the lock descriptors that a forked process has inherited.

    Each worker of a DataLoader calls it first: a worker outlives a parent that is killed by seconds, and would keep
    the parent's locks.
    """
    while _held:
        os.close(_held.pop())


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds the lock of a file or folder inside the context.

    Args:
        path: File or folder, which must exist.
        wait: Wait until the lock is free. Default: return at once.

    Yields:
        True if this process holds the lock, False if another process does.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks files only for writers
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
    """Lets one process at a time train in `folder`.

    Raises:
        ValueError: Another process trains in `folder`.
    """
    with locked(folder) as own:  # the folder itself, so that no file stays behind
        if not own:
            remedy = "wait until it has ended, or give another --run-folder"
            raise ValueError(f"another process trains in {folder}: {remedy}")
        yield
