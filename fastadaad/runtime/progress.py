"""Progress bars for work of more than two seconds: images/s, a note, time left."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastadaad.runtime.text import printable

Item = TypeVar("Item")


class _Elapsed:
    """Title and the seconds since its creation, formatted whenever the bar is drawn."""

    def __init__(self, title: str) -> None:
        self._title, self._began_at = title, time.perf_counter()

    def __str__(self) -> str:
        return f"{self._title} {time.perf_counter() - self._began_at:.0f} s"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Counts of an ImageProgress."""

    images: int = 0
    timed_images: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0


class ImageProgress:
    """Counter of the images of one task, shown on a bar.

    The clock can be stopped, so that images/s refers to training alone.
    """

    def __init__(self, progress: Progress, title: str, total_images: int, before: Counts | None = None) -> None:
        before = before or Counts()
        self._progress = progress
        self._task = progress.add_task(title, total=total_images, completed=before.images, rate="", note="")
        self._images = before.images
        self._timed_images = before.timed_images
        self._note = ""
        self._stopped_s = 0.0
        self._waited_s = before.waited_s
        self._started_at = time.perf_counter() - before.seconds
        self._stopped_at: float | None = None

    @property
    def counts(self) -> Counts:
        """Counts so far, from which a resumed run continues."""
        return Counts(
            images=self._images, timed_images=self._timed_images, seconds=self.seconds, waited_s=self._waited_s
        )

    @property
    def seconds(self) -> float:
        """Running time so far in seconds, without the time for which the clock was stopped."""
        now = time.perf_counter() if self._stopped_at is None else self._stopped_at
        return now - self._started_at - self._stopped_s

    @property
    def images_per_s(self) -> float:
        """Images per second of running time, without the images that passed while the clock was stopped."""
        return self._timed_images / max(self.seconds, 1e-9)

    @property
    def waited_fraction(self) -> float:
        """Fraction of the running time that `waited_for` spent waiting."""
        return self._waited_s / max(self.seconds, 1e-9)

    def waited_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yields `items` and counts the time until each item arrives as waiting."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            item = next(iterator, None)
            self._waited_s += time.perf_counter() - before
            if item is None:
                return
            yield item

    def advance(self, num_images: int, note: str | None = None) -> None:
        """Adds `num_images` to the count and shows `note` beside the bar; None keeps the last note."""
        self._images += num_images
        if self._stopped_at is None:
            self._timed_images += num_images
        self._note = self._note if note is None else note
        rate = f"{self.images_per_s:,.0f} images/s"
        self._progress.update(self._task, advance=num_images, rate=rate, note=self._note)

    @contextmanager
    def clock_stopped(self, title: str | None = None) -> Iterator[None]:
        """Stops the clock inside the context; a `title` is shown beside the bar with the seconds spent inside."""
        self._stopped_at = time.perf_counter()
        if title is not None:
            self._progress.update(self._task, note=_Elapsed(title))
        try:
            yield
        finally:
            self._progress.update(self._task, note=self._note)
            self._stopped_s += time.perf_counter() - self._stopped_at
            self._stopped_at = None


@contextmanager
def image_progress(
    console: Console, title: str, total_images: int, before: Counts | None = None
) -> Iterator[ImageProgress]:
    """Shows a progress bar on `console`; on anything but a terminal only its last line is printed.

    Args:
        console: Console of the bar.
        title: Text before the bar.
        total_images: Number of images at the end.
        before: Counts of an interrupted run, from which the bar continues.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield ImageProgress(progress, printable(title), total_images, before)
