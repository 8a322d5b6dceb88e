from unittest import mock

import pytest
from rich.console import Console

from fastadaad.progress import image_progress


def test_rate_leaves_out_the_time_in_which_the_clock_stood():
    now = 0.0
    with (
        mock.patch("fastadaad.progress.time.perf_counter", side_effect=lambda: now),
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
