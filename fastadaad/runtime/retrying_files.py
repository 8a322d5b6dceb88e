"""Retries failed writes later instead of aborting the run, for disks that are full or unreachable for a while."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastadaad.runtime.files import write_atomically

log = logging.getLogger(__name__)


class RetryingFiles:
    """Writes files; a file that cannot be written stays in memory and is tried again with the next one.

    Each reason is logged once.

    Args:
        enabled: False on ranks that leave the writing to rank 0: nothing is written.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._waiting: dict[Path, bytes] = {}
        self._reported: set[tuple[str, str | None]] = set()

    def write(self, path: Path, content: bytes) -> None:
        """Writes `content` to `path`, and all files that are waiting."""
        if self.enabled:
            self._waiting[path] = content
        for waiting in list(self._waiting):
            self.attempt(waiting.name, partial(self._write, waiting))

    def attempt(self, name: str, write: Callable[[], object]) -> bool:
        """Calls `write`, and logs an OSError as a warning about `name`, once per reason.

        Returns:
            False if `write` raised OSError.
        """
        if not self.enabled:
            return True
        try:
            write()
        except OSError as error:
            # strerror is without the name of the file, which differs between checkpoints.
            if (name, error.strerror) not in self._reported:
                self._reported.add((name, error.strerror))
                log.warning(
                    f"{name} cannot be written ({error}): the training goes on without it; free space or give access"
                )
            return False
        return True

    def require(self) -> None:
        """Writes all files that are waiting.

        Raises:
            OSError: A file still cannot be written; the error names the file.
        """
        for path in list(self._waiting):
            try:
                self._write(path)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self._waiting[path])
        del self._waiting[path]
