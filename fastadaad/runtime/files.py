"""Writes files atomically."""

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, meets the old file or the new one and nothing between."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # of several processes each has its own
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what processes that were killed while they wrote to `folder` have left."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):  # a folder that cannot be written to keeps them
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renaming in `folder` last over a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
