import io
from unittest import mock

import pytest
from rich.console import Console

from fastadaad.runtime.progress import image_progress


def test_the_rate_excludes_the_time_for_which_the_clock_was_stopped():
    now = 0.0
    with (
        mock.patch("fastadaad.runtime.progress.time.perf_counter", side_effect=lambda: now),
        image_progress(Console(quiet=True), "title", 100) as progress,
    ):
        now = 2.0
        progress.advance(10)
        with progress.clock_stopped():
            now = 7.0
            assert progress.seconds == pytest.approx(2.0)
        now = 10.0
        progress.advance(20)
        assert progress.seconds == pytest.approx(5.0)
        assert progress.images_per_s == pytest.approx(6.0)


def test_the_time_until_an_item_arrives_is_waiting_and_the_time_between_items_is_not():
    now = 0.0

    def slow_items():
        nonlocal now
        for item in "abc":
            now += 1.0
            yield item
        now += 0.5  # to find that there are no more

    with (
        mock.patch("fastadaad.runtime.progress.time.perf_counter", side_effect=lambda: now),
        image_progress(Console(quiet=True), "title", 3) as progress,
    ):
        seen = []
        for item in progress.waited_for(slow_items()):
            seen.append(item)
            now += 5.0
        assert seen == ["a", "b", "c"]
        assert progress.waited_fraction == pytest.approx(3.5 / 18.5)


def test_images_that_pass_while_the_clock_is_stopped_are_not_in_the_rate():
    now = 0.0
    with (
        mock.patch("fastadaad.runtime.progress.time.perf_counter", side_effect=lambda: now),
        image_progress(Console(quiet=True), "title", 100) as progress,
    ):
        with progress.clock_stopped("compiling"):
            now = 30.0
            progress.advance(50)
        now = 32.0
        progress.advance(10)
        assert progress.images_per_s == pytest.approx(5.0)


def test_a_titled_stop_is_shown_with_its_seconds_until_it_ends():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    now = 0.0
    with (
        mock.patch("fastadaad.runtime.progress.time.perf_counter", side_effect=lambda: now),
        image_progress(console, "title", 100) as progress,
    ):

        def shown() -> str:
            console.file.truncate(0)
            progress._progress.refresh()
            return console.file.getvalue()

        progress.advance(1, "loss 2")
        with progress.clock_stopped("compiling"):
            assert "compiling 0 s" in shown()
            now = 17.0
            assert "compiling 17 s" in shown()
            assert "loss 2" not in shown()
        assert "compiling" not in shown()
        assert "loss 2" in shown()
