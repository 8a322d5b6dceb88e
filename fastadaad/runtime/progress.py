"""Live progress of anything that takes more than two seconds: images/s, a note, time left."""

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
    """`title` and the seconds since now, counted whenever it is shown."""

    def __init__(self, title: str) -> None:
        self._title, self._began_at = title, time.perf_counter()

    def __str__(self) -> str:
        return f"{self._title} {time.perf_counter() - self._began_at:.0f} s"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an ImageProgress has counted."""

    images: int = 0
    timed_images: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0


class ImageProgress:
    """Counts images of one task and shows them; the clock can be stopped, so that images/s is of training alone."""

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
        """So far, for a later process to go on from."""
        return Counts(
            images=self._images, timed_images=self._timed_images, seconds=self.seconds, waited_s=self._waited_s
        )

    @property
    def seconds(self) -> float:
        """Running time so far, without the time the clock stood."""
        now = time.perf_counter() if self._stopped_at is None else self._stopped_at
        return now - self._started_at - self._stopped_s

    @property
    def images_per_s(self) -> float:
        """Without the images that passed while the clock stood."""
        return self._timed_images / max(self.seconds, 1e-9)

    @property
    def waited_share(self) -> float:
        """Of the seconds, those that `waited_for` spent waiting."""
        return self._waited_s / max(self.seconds, 1e-9)

    def waited_for(self, items: Iterable[Item]) -> Iterator[Item]:
        """`items`, with the time that each of them takes to come counted as waiting."""
        iterator = iter(items)
        while True:
            before = time.perf_counter()
            item = next(iterator, None)
            self._waited_s += time.perf_counter() - before
            if item is None:
                return
            yield item

    def advance(self, num_images: int, note: str | None = None) -> None:
        """Count `num_images` more and show `note` beside the bar; None: leave the note."""
        self._images += num_images
        if self._stopped_at is None:
            self._timed_images += num_images
        self._note = self._note if note is None else note
        rate = f"{self.images_per_s:,.0f} images/s"
        self._progress.update(self._task, advance=num_images, rate=rate, note=self._note)

    @contextmanager
    def clock_stopped(self, title: str | None = None) -> Iterator[None]:
        """The clock stands inside; with a `title`, it and the seconds spent inside are shown beside the bar."""
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
    """A progress bar on `console`; on anything but a terminal it draws nothing until its last line.

    `before`: what an earlier process has counted.
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
