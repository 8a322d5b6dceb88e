"""SIGTERM and SIGINT: a training finishes its step and saves; work before and after it stops at once.

SIGHUP, after which there is no terminal, stops nothing.
"""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
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
    with _handled_by(dict.fromkeys(SIGNALS, received.request) | {signal.SIGHUP: _go_on}):
        yield received


@contextmanager
def without_terminal() -> Iterator[None]:
    """Lets work inside go on after SIGHUP."""
    with _handled_by({signal.SIGHUP: _go_on}):
        yield


@contextmanager
def stopped_by_signals(has_saved: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Raises Interrupted inside the context on a signal; a second signal terminates the process immediately.

    Args:
        has_saved: Returns True if the work has saved something to resume from, for the message.
    """

    def stop(signal_number: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        saved = "what was saved so far is complete (train --resume continues the run)"
        raise Interrupted(f"stopped; {saved if has_saved() else 'nothing was saved yet'}", signal_number)

    with _handled_by(dict.fromkeys(SIGNALS, stop) | {signal.SIGHUP: _go_on}):
        yield


def _go_on(signal_number: int) -> None:
    log.info("SIGHUP: the terminal is gone, and the work goes on")


@contextmanager
def _handled_by(handlers: Mapping[signal.Signals, Callable[[int], None]]) -> Iterator[None]:
    """Calls the handler of a signal inside the context, and restores what was before; main thread only.

    An ignored SIGHUP, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle_own(signal_number: int, frame: object) -> None:
        if os.getpid() == process:  # Ctrl-C also reaches forked workers that read data, which their parent ends
            handlers[signal.Signals(signal_number)](signal_number)

    is_ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    numbers = [number for number in handlers if not (is_ignored and number == signal.SIGHUP)]
    before = {number: signal.signal(number, handle_own) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
