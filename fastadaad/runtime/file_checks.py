"""What every reader of files asks of them, and how it says what is wrong: in one line."""

from pathlib import Path

NUM_START_BYTES = 256  # which tell what a file is


def start_of(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(NUM_START_BYTES)


def looks_like_html(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page, as servers send instead of a file."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<!--"))


def is_web_page(path: Path) -> bool:
    """Whether `path` is a file that holds a web page, of whatever name."""
    return path.is_file() and looks_like_html(start_of(path))


def one_line(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
