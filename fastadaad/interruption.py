"""SIGTERM and SIGINT during a training: the step is finished and saved; a second SIGINT stops at once."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818 - not an error
    """A training was asked to stop and has saved what it did; the message says where, and how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        """As a shell gives it to what a signal has ended: 130 for SIGINT, 143 for SIGTERM."""


class Interruption:
    """Whether this process was asked to stop."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self._say, self._process = say, os.getpid()
        self.signal_number: int | None = None

    def request(self, signal_number: int, frame: object = None) -> None:
        """What a signal does. Raises KeyboardInterrupt at the second SIGINT."""
        if os.getpid() != self._process:  # a worker that reads data, which Ctrl-C reaches too: its parent ends it
            return
        if self.signal_number == signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal_number
        again = "; once more to stop at once" if signal_number == signal.SIGINT else ""
        self._say(f"{signal.Signals(signal_number).name}: finishing the step and saving{again}")


@contextmanager
def interruption(say: Callable[[str], object]) -> Iterator[Interruption]:
    """Signals are noted inside and do what they did before afterwards. Only a main thread gets any."""
    noted = Interruption(say)
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {number: signal.signal(number, noted.request) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
