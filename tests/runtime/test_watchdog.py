"""A process that makes no progress is reported, and one that waits is not."""

import threading

from fastadaad.runtime.watchdog import Watchdog

LONG_S = 30.0  # a longer wait has failed


def watchdog(timeout_s: float) -> tuple[Watchdog, threading.Event, list[tuple[float, str]]]:
    """Returns a watchdog, the event of its first report, and its reports."""
    reports, barked = [], threading.Event()

    def note(seconds: float, stack: str) -> None:
        reports.append((seconds, stack))
        barked.set()

    return Watchdog(timeout_s, note), barked, reports


def test_a_hanging_main_thread_is_reported_with_its_stack():
    dog, barked, reports = watchdog(0.05)
    dog.progress()

    def wait_here_for_the_report() -> bool:
        return barked.wait(LONG_S)

    assert wait_here_for_the_report()
    dog.stop()
    seconds, stack = reports[0]
    assert seconds > 0.05
    assert "wait_here_for_the_report" in stack


def test_nothing_is_reported_before_the_first_progress_while_it_rests_and_when_it_is_off():
    dog, barked, _ = watchdog(0.05)
    assert not barked.wait(0.3)
    dog.resume()
    assert not barked.wait(0.3)
    dog.progress()
    dog.rest()
    assert not barked.wait(0.3)
    dog.off()
    dog.resume()
    assert not barked.wait(0.3)
    dog.progress()
    dog.rest()
    dog.resume()
    assert barked.wait(LONG_S)
    dog.stop()
