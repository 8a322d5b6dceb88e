"""Atomic writes, and checks of the file that a command is going to write."""

import errno
import os
from contextlib import suppress
from pathlib import Path

# End of the names of temporary files, which other programs' do not have.
TEMPORARY = ".fastadaad.tmp"


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `content` to `path`; a reader, or a crash, finds the old file or the new one and nothing in between."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")  # each process has its own
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
    """Deletes the temporary files of this package's processes that were killed while they wrote to `folder`."""
    for path in folder.glob(f"*{TEMPORARY}"):
        with suppress(OSError):  # a read-only folder keeps them
            path.unlink()


def check_output(path: Path) -> None:
    """Checks the file that a command is going to write, before the work that it is to hold.

    Raises:
        ValueError: `path` is a folder, or its folder does not exist.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written, as {path.parent} is no folder: make it, or give another place")


def write_output(path: Path, content: bytes) -> None:
    """Writes the result of a command to `path`, atomically unless `path` is a device or a pipe.

    Raises:
        ValueError: `path` cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # a device or a pipe, such as /dev/stdout, must not be replaced by a file
        else:
            write_atomically(path, content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): give another place, or make room") from error


def _sync_folder(folder: Path) -> None:
    """Makes a renaming in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOTSUP):  # some file systems synchronise no folders
            raise
    finally:
        os.close(descriptor)
