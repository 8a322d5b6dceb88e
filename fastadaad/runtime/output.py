"""Output that may fail: a full disk, a closed stream, a reader or a terminal that is gone ends no work.

The text is lost there; a run has its messages in its log.txt too.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

STREAMS = ("stdout", "stderr")


class TolerantStream:
    """An output stream that keeps its first error instead of raising it; its other attributes are those of the stream.

    Letters that the stream's encoding lacks are written as escapes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes `text`, or loses it."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError) as error:  # ValueError: it is closed
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        """Writes what the stream holds back, or loses it."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error


def reason(error: Exception) -> str:
    """Returns the reason of a stream's error in words."""
    return str(getattr(error, "strerror", None) or error)


def lost_output() -> list[str]:
    """Returns why output has been lost, inside tolerant_output: one line per stream."""
    streams = [(name, getattr(sys, name)) for name in STREAMS]
    return [
        f"{name} cannot be written ({reason(stream.error)})"
        for name, stream in streams
        if isinstance(stream, TolerantStream) and stream.error is not None
    ]


@contextmanager
def tolerant_output(console: Console) -> Iterator[None]:
    """Lets work inside outlive the standard streams and the stream of `console`."""
    replaced = {}
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, TolerantStream):
            replaced[name] = stream
            setattr(sys, name, TolerantStream(stream))
    own = console.file
    is_own = not isinstance(own, TolerantStream)
    if is_own:
        console.file = TolerantStream(own)  # type: ignore[assignment]
    try:
        yield
    finally:
        if is_own:
            console.file = own
        for name, stream in replaced.items():
            if getattr(getattr(sys, name), "_stream", None) is stream:  # nobody has replaced it meanwhile
                setattr(sys, name, stream)


def open_standard_streams() -> None:
    """Opens /dev/null in place of each standard stream that is closed.

    Otherwise the next file that is opened takes its number, and gets what a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def end_output() -> None:
    """Writes what the standard streams hold back, or drops it, so that the interpreter's end does not fail by it."""
    for name in STREAMS:
        stream = getattr(sys, name)
        if stream is None:
            continue
        try:
            stream.flush()
        except (OSError, ValueError):
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), STREAMS.index(name) + 1)
