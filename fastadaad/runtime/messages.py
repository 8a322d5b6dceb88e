"""Messages of a run: the standard logger `fastadaad`, printed on a rich console.

Modules log with `logging.getLogger(__name__)`. A program that configures logging itself gets the messages like those of
any library; the command line and Trainer print them. A LogFile keeps them although they could not be printed.
"""

import logging
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from fastadaad.runtime.output import lost_output, tolerant_output
from fastadaad.runtime.text import print_line, printable

LOGGER = "fastadaad"
LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "FASTADAAD_LOG"
LOG_FILE = "log.txt"
"""Name of the file of messages in a run's folder."""
MAX_WAITING = 10_000
"""Lines that wait in memory while the file cannot be written; the oldest are dropped."""


class _ConsoleHandler(logging.Handler):
    """Prints messages on `console`, one line each, escaped."""

    console: Console | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.console is not None:
            print_line(self.console, record.getMessage())


_handler = _ConsoleHandler()


def default_level() -> str:
    """Returns the level that $FASTADAAD_LOG names, `info` by default.

    Raises:
        ValueError: The variable names no level.
    """
    level = os.environ.get(LEVEL_VARIABLE, "info").lower()
    if level not in LEVELS:
        raise ValueError(f"{LEVEL_VARIABLE} is {level!r}: choose {', '.join(LEVELS[:-1])} or {LEVELS[-1]}")
    return level


@contextmanager
def messages_on(console: Console, level: str | None = None) -> Iterator[None]:
    """Prints the package's messages on `console` inside; of nested contexts the innermost console prints.

    Output that fails, such as to a full disk, ends nothing inside (see output.py).

    Args:
        console: Console to print on; a quiet one, as ranks other than the first have it, prints nothing.
        level: Least level that is printed. Default: the level in force, or that of $FASTADAAD_LOG.
    """
    logger = logging.getLogger(LOGGER)
    before = _handler.console, logger.level
    if level is not None or logger.level == logging.NOTSET:
        logger.setLevel((level or default_level()).upper())
    _handler.console = console
    logger.addHandler(_handler)  # adding it twice has no effect
    try:
        with tolerant_output(console):
            yield
    finally:
        _handler.console = before[0]
        logger.setLevel(before[1])
        if _handler.console is None:
            logger.removeHandler(_handler)


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
