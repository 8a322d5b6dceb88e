"""Images/s of every engine on the same images, for a consumer that only receives them."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import torch

from fastadaad.data.pipeline import Batch
from fastadaad.runtime.timing import Spread, ratios, rotated

MIN_MARGIN = 4  # dali keeps three batches

Epoch = Callable[[int], Generator[Batch, None, None]]


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """Data pipeline to be timed: `epoch(number)` yields the batches of an epoch."""

    epoch: Epoch
    work: str
    """Description of the augmentation."""
    num_workers: int
    """Worker processes, or threads beside the consumer's thread."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Entrants that load batches of the same images."""

    images: str
    """Description of the images."""
    batch_size: int
    num_batches: int
    """Batches of an epoch."""
    num_workers: int
    """Largest number of workers of any entrant."""
    entrants: Mapping[str, Entrant]
    references: tuple[str, ...]
    """Names of the entrants that the others are compared with."""
    device: torch.device

    @property
    def margin(self) -> int:
        """Batches at either end of an epoch that are not timed: at least as many as any entrant prefetches.

        At the beginning of an epoch an entrant prefetches; at the end it has less and less to do.
        """
        return max(MIN_MARGIN, 2 * self.num_workers)  # DataLoader prefetches two batches per worker

    @property
    def num_timed(self) -> int:
        """Timed batches in the middle of an epoch, a multiple of the workers. Raises ValueError if none is left."""
        workers = max(1, self.num_workers)
        num_timed = (self.num_batches - 1 - 2 * self.margin) // workers * workers
        if num_timed < 1:
            enough = (1 + 2 * self.margin + workers) * self.batch_size
            raise ValueError(f"{self.num_batches} batches are too few to be timed: take {enough} images or more")
        return num_timed


@dataclass(frozen=True)
class Sample:
    """Measurement of one entrant in one epoch."""

    images_per_s: float
    first_batch_ms: float
    """Milliseconds to the first batch, with the start of the workers or the building of the graph."""


def rows(contest: Contest, rounds: int) -> Iterator[dict[str, object]]:
    """Yields one row per entrant; a ratio is images/s over those of a reference in the same round."""
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
    """Returns one sample per entrant and round, after a warm-up round; the order rotates with the round.

    Each sample is one epoch, closed before the next begins: no worker of one entrant runs while another is timed.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in contest.entrants}
    for number in range(rounds + 1):
        for name in rotated(list(contest.entrants), number):
            with closing(contest.entrants[name].epoch(number)) as batches:
                samples[name].append(_sample(contest, batches))
    return {name: taken[1:] for name, taken in samples.items()}


def _sample(contest: Contest, batches: Iterator[Batch]) -> Sample:
    first_s, _ = _consume(batches, 1, contest.device)
    _consume(batches, contest.margin, contest.device)
    seconds, num_images = _consume(batches, contest.num_timed, contest.device)
    return Sample(num_images / seconds, 1e3 * first_s)


def _consume(batches: Iterator[Batch], count: int, device: torch.device) -> tuple[float, int]:
    """Seconds until `count` batches are on the device, and their number of images; reads one pixel of each batch."""
    start, num_images, pixels = time.perf_counter(), 0, torch.zeros((), device=device)
    for x_natural, labels in islice(batches, count):
        pixels += x_natural[-1, -1, -1, -1]
        num_images += len(labels)
    pixels.item()
    return time.perf_counter() - start, num_images
