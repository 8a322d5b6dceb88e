"""Images/s of every engine on the same images, for a consumer that does nothing with them."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from fastadaad.data.pipeline import Batch

from .timing import Spread, ratios

MIN_MARGIN = 4  # dali keeps three batches

Epoch = Callable[[int], Generator[Batch, None, None]]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """What makes the batches of an epoch, given its number."""

    epoch: Epoch
    work: str
    """What it does to an image, in words."""
    num_workers: int
    """Processes, or threads beside the consumer's."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Entrants that make batches of the same images."""

    images: str
    """What they are, in words."""
    batch_size: int
    num_batches: int
    """Of an epoch."""
    num_workers: int
    """At most, of any entrant."""
    entrants: Mapping[str, Entrant]
    references: tuple[str, ...]
    """Entrants that the others are compared with."""
    device: torch.device

    @property
    def margin(self) -> int:
        """Batches at either end of an epoch that are not timed: as many as any entrant keeps ready, and more.

        At its beginning an entrant works ahead, and at its end it has less and less to do.
        """
        return max(MIN_MARGIN, 2 * self.num_workers)  # DataLoader asks a worker for two batches ahead

    @property
    def num_timed(self) -> int:
        """Batches in the middle of an epoch, equally many for each worker. Raises ValueError where there are none."""
        workers = max(1, self.num_workers)
        num_timed = (self.num_batches - 1 - 2 * self.margin) // workers * workers
        if num_timed < 1:
            enough = (1 + 2 * self.margin + workers) * self.batch_size
            raise ValueError(f"{self.num_batches} batches are too few to be timed: take {enough} images or more")
        return num_timed


@dataclass(frozen=True)
class Sample:
    """One entrant in one epoch."""

    images_per_s: float
    first_batch_ms: float
    """With the start of its workers or the building of its graph, which images_per_s is without."""


def rows(contest: Contest, rounds: int) -> Iterator[dict[str, object]]:
    """One per entrant; a ratio is that of a round's images/s to those of the reference."""
    samples = take_turns(contest, rounds)
    rates = {name: [sample.images_per_s for sample in taken] for name, taken in samples.items()}
    for name, entrant in contest.entrants.items():
        row = {
            "images": contest.images,
            "batch_size": contest.batch_size,
            "engine": name,
            "work": entrant.work,
            "workers": entrant.num_workers,
            **Spread.of(rates[name]).columns("images_per_s_{}"),
        }
        for reference in contest.references:
            row |= ratios(rates[name], rates[reference]).columns(f"times_{reference.lower()}_{{}}")
        row |= Spread.of([sample.first_batch_ms for sample in samples[name]]).columns("first_batch_{}_ms")
        yield row | {"batches": contest.num_timed, "n": rounds}


def take_turns(contest: Contest, rounds: int) -> dict[str, list[Sample]]:
    """Of each entrant one sample per round, after a round that is not kept; the order rotates with the round.

    Each sample is an epoch of its own, which is closed before the next begins: no worker of one entrant works while
    another one is timed.
    """
    names = list(contest.entrants)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with closing(contest.entrants[name].epoch(number)) as batches:
                samples[name].append(_sample(contest, batches))
    return {name: taken[1:] for name, taken in samples.items()}


def _sample(contest: Contest, batches: Iterator[Batch]) -> Sample:
    first_s, _ = _consume(batches, 1, contest.device)
    _consume(batches, contest.margin, contest.device)
    seconds, num_images = _consume(batches, contest.num_timed, contest.device)
    return Sample(num_images / seconds, 1e3 * first_s)


def _consume(batches: Iterator[Batch], count: int, device: torch.device) -> tuple[float, int]:
    """Seconds until `count` batches are there, on the device, and their images. Of each one pixel is read."""
    start, num_images, pixels = time.perf_counter(), 0, torch.zeros((), device=device)
    for x_natural, labels in islice(batches, count):
        pixels += x_natural[-1, -1, -1, -1]
        num_images += len(labels)
    pixels.item()
    return time.perf_counter() - start, num_images
