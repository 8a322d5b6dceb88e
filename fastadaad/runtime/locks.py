"""File locks between processes. The kernel releases a lock when its process ends."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)

LOCK_FILE = ".fastadaad.lock"
UNSUPPORTED = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Errors of file systems that cannot lock a file, or no folders."""

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
    descriptor = _locked_descriptor(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    if descriptor is None:
        yield False
        return
    _held.add(descriptor)
    try:
        yield True
    finally:
        _held.remove(descriptor)
        os.close(descriptor)


def _locked_descriptor(path: Path, operation: int) -> int | None:
    """Opens and locks `path`; returns None if another process holds the lock.

    NFS locks no folders, so there a file in the folder is locked. Without locks at all, two processes are not kept
    apart, which a warning says.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks files only for writers
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            os.close(descriptor)
            raise
        if path.is_dir():
            os.close(descriptor)
            os.close(os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666))
            return _locked_descriptor(path / LOCK_FILE, operation)
        log.warning(f"{path} cannot be locked ({error.strerror}): start one process at a time in its folder")
    return descriptor


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
