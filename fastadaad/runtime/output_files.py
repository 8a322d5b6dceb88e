"""The file that a command is asked to write: looked at before the work that it is to hold, and written in one piece."""

from pathlib import Path

from fastadaad.runtime.files import write_atomically


def check_output(path: Path) -> None:
    """Raises ValueError where `path` is a folder, or in a folder that does not exist."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written, as {path.parent} is no folder: make it, or give another place")


def write_output(path: Path, content: bytes) -> None:
    """Write `content` to `path` in one piece. Raises ValueError where that cannot be done."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # a device or a pipe, such as /dev/stdout, must not be replaced by a file
        else:
            write_atomically(path, content)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}): give another place, or make room") from error
