"""File of a run's messages and warnings, so that they are known although they could not be printed."""

import logging
import time
import warnings
from collections import deque
from pathlib import Path
from typing import Any

from fastadaad.runtime.messages import LOGGER
from fastadaad.runtime.output import lost_output
from fastadaad.runtime.text import printable

NAME = "log.txt"
MAX_WAITING = 10_000
"""Lines that wait in memory while the file cannot be written; the oldest are dropped."""


class LogFile(logging.Handler):
    """Appends the messages and warnings inside its context to `path`, a line each, once `begin` has been called.

    Lines that cannot be written wait for the next one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._has_begun = False
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._reported: set[str] = set()
        self._show: Any = None

    def begin(self) -> None:
        """Writes the lines so far and all later ones; before it, the folder of the file is not touched."""
        self._has_begun = True
        self._write()

    def emit(self, record: logging.LogRecord) -> None:
        """Adds a message."""
        self._add(record.getMessage())

    def __enter__(self) -> "LogFile":
        logging.getLogger(LOGGER).addHandler(self)
        self._show = warnings.showwarning
        warnings.showwarning = self._show_and_keep
        return self

    def __exit__(self, *exception: object) -> None:
        logging.getLogger(LOGGER).removeHandler(self)
        if warnings.showwarning == self._show_and_keep:  # nobody has replaced it meanwhile
            warnings.showwarning = self._show
        self._write()

    def _show_and_keep(self, message: Any, category: Any, *place: Any, **options: Any) -> None:
        self._add(f"{category.__name__}: {message}")
        self._show(message, category, *place, **options)

    def _add(self, message: str) -> None:
        self._waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {printable(message)}\n")
        self._write()

    def _write(self) -> None:
        for line in lost_output():
            if line not in self._reported:
                self._reported.add(line)
                self._waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}: the run goes on\n")
        if not (self._has_begun and self._waiting):
            return
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
        except OSError:
            return  # the lines wait
        self._waiting.clear()
