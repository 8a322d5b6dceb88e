"""Messages of a run: the standard logger `fastadaad`, printed on a rich console.

Modules log with `logging.getLogger(__name__)`. A program that configures logging itself gets the messages like those of
any library; the command line and Trainer print them.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from fastadaad.runtime.output import tolerant_output
from fastadaad.runtime.text import print_line

LOGGER = "fastadaad"
LEVELS = ("debug", "info", "warning", "error")
LEVEL_VARIABLE = "FASTADAAD_LOG"


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
