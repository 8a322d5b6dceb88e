"""Thread that reports a main thread without progress."""

import sys
import threading
import time
import traceback
from collections.abc import Callable


class Watchdog:
    """Calls `on_hang` if no progress is reported for `timeout_s` seconds.

    The count begins with the first call of `progress`, and is suspended between `rest` and `resume`.

    Args:
        timeout_s: Seconds without progress.
        on_hang: Function of these seconds and the stack of the main thread.
    """

    def __init__(self, timeout_s: float, on_hang: Callable[[float, str], None]) -> None:
        self._timeout_s, self._on_hang = timeout_s, on_hang
        self._since: float | None = None
        self._is_watching = False
        self._ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def progress(self) -> None:
        """Reports progress and restarts the count."""
        self._is_watching = True
        self._since = time.monotonic()

    def rest(self) -> None:
        """Suspends the count."""
        self._since = None

    def resume(self) -> None:
        """Restarts the count, if progress has been reported before."""
        self._since = time.monotonic() if self._is_watching else None

    def off(self) -> None:
        """Suspends the count until progress is reported again."""
        self._is_watching, self._since = False, None

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._timeout_s / 4)):
            since = self._since
            if since is not None and time.monotonic() - since > self._timeout_s:
                stack = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
                self._on_hang(time.monotonic() - since, "".join(stack))
