"""What the harness needs to know of a reader."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutations import Field


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file that is damaged, or what is packed in it."""

    file: str
    unpack: Callable[[bytes], bytes] = bytes
    pack: Callable[[bytes, bytes], bytes] = lambda whole, inner: inner
    """(the whole file, what is in it now) -> a whole file."""
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader."""

    write: Callable[[Path], None]
    """Puts valid files into an empty folder."""
    read: Callable[[Path], None]
    parts: tuple[Part, ...]
    error: type[Exception]
    """The only one that it may raise."""
