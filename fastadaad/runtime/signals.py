"""SIGTERM and SIGINT: a training finishes its step and saves, all before and after it stops where it is."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):  # as KeyboardInterrupt, so that nobody who expects errors takes it for one
    """This process was asked to stop; the message says what is saved, and how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        """As a shell gives it to what a signal has ended: 130 for SIGINT, 143 for SIGTERM."""


class Interruption:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def request(self, signal_number: int) -> None:
        """What a signal does. Raises KeyboardInterrupt at the second SIGINT."""
        if self.signal_number == signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal_number
        again = "; once more to stop at once" if signal_number == signal.SIGINT else ""
        log.info(f"{signal.Signals(signal_number).name}: finishing the step and saving{again}")


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Signals are noted inside."""
    noted = Interruption()
    with _handled_by(noted.request):
        yield noted


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """A signal raises Interrupted inside, wherever this process is; a second one ends it without a word."""
    with _handled_by(_stop):
        yield


def _stop(signal_number: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    raise Interrupted("stopped; what was saved so far is complete (train goes on with --resume)", signal_number)


@contextmanager
def _handled_by(handle: Callable[[int], None]) -> Iterator[None]:
    """Signals do what they did before afterwards. Only a main thread gets any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle_own(signal_number: int, frame: object) -> None:
        if os.getpid() == process:  # else a worker that reads data, which Ctrl-C reaches too: its parent ends it
            handle(signal_number)

    before = {number: signal.signal(number, handle_own) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
