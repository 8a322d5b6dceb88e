"""Description of a reader for the harness."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mutations import Field


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file to damage, or packed content of a file."""

    file: str
    unpack: Callable[[bytes], bytes] = bytes
    pack: Callable[[bytes, bytes], bytes] = lambda whole, inner: inner
    """(whole file, new content) -> new whole file."""
    fields: tuple[Field, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader and valid files for it."""

    write: Callable[[Path], None]
    """Writes valid files to an empty folder."""
    read: Callable[[Path], None]
    parts: tuple[Part, ...]
    error: type[Exception]
    """The only exception that the reader may raise."""
