"""Files of a run on a disk that may be full or gone for a while: the training goes on, and they are written later."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fastadaad.runtime.files import write_atomically

log = logging.getLogger(__name__)


class PatientFiles:
    """Writes files; one that cannot be written is kept in memory, reported to `say` once, and tried again.

    With `enabled` False nothing is written: another process does it.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self._waiting: dict[Path, bytes] = {}
        self._reported: set[tuple[str, str | None]] = set()

    def write(self, path: Path, content: bytes) -> None:
        """Write `path`, and with it all that is waiting."""
        if self.enabled:
            self._waiting[path] = content
        for waiting in list(self._waiting):
            self.attempt(waiting.name, partial(self._write, waiting))

    def attempt(self, what: str, write: Callable[[], object]) -> bool:
        """Whether `write` succeeded; where it raised OSError, `what` is reported, and each reason only once."""
        if not self.enabled:
            return True
        try:
            write()
        except OSError as error:
            # strerror is without the file's name, which is another for each checkpoint.
            if (what, error.strerror) not in self._reported:
                self._reported.add((what, error.strerror))
                log.warning(
                    f"{what} cannot be written ({error}): the training goes on without it; free space or give access"
                )
            return False
        return True

    def require(self) -> None:
        """Write all that is waiting. Raises OSError with the file's name where that is still not possible."""
        for path in list(self._waiting):
            try:
                self._write(path)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self._waiting[path])
        del self._waiting[path]
