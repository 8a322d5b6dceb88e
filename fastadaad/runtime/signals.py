"""SIGTERM and SIGINT: a training finishes its step and saves; work before and after it stops at once."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(BaseException):  # like KeyboardInterrupt, so that handlers of errors do not catch it
    """Raised after a signal; the message names what is saved and how to resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
        """Exit code of a shell for a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""


class Interruption:
    """Signal that this process has received, if any."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def request(self, signal_number: int) -> None:
        """Records a signal and logs it. Raises KeyboardInterrupt at the second SIGINT."""
        if self.signal_number == signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = signal_number
        again = "; once more to stop at once" if signal_number == signal.SIGINT else ""
        log.info(f"{signal.Signals(signal_number).name}: finishing the step and saving{again}")


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Records signals inside the context, instead of ending the process."""
    received = Interruption()
    with _handled_by(received.request):
        yield received


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raises Interrupted inside the context on a signal; a second signal terminates the process immediately."""
    with _handled_by(_stop):
        yield


def _stop(signal_number: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    raise Interrupted("stopped; what was saved so far is complete (train --resume continues the run)", signal_number)


@contextmanager
def _handled_by(handle: Callable[[int], None]) -> Iterator[None]:
    """Calls `handle` on a signal inside the context, and restores the handlers afterwards; main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle_own(signal_number: int, frame: object) -> None:
        if os.getpid() == process:  # Ctrl-C also reaches forked workers that read data, which their parent ends
            handle(signal_number)

    before = {number: signal.signal(number, handle_own) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
