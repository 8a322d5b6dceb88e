"""Largest batch whose training step fits into the memory of this machine: tried on CUDA, estimated on the CPU."""

import gc
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fastadaad.run_config import RunConfig
from fastadaad.training.build import distiller_of, resolve_device
from fastadaad.training.distiller import Distiller
from fastadaad.training.optimizers import make_optimizer
from fastadaad.training.synthetic import LEARNING_RATE, images_of, random_networks

MULTIPLE = 8  # step of the search; tensor cores want multiples of 8
GIB = 2**30
# A smaller rise of the process's peak means nothing: allocators keep and reuse memory.
CLEAR_RISE = 64 * 2**20
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Measurement of one batch size."""

    batch_size: int
    peak_bytes: int | None
    """Peak memory of the device, or of the process; None: the batch did not fit."""
    images_per_s: float | None


def largest_batch(fits: Callable[[int], bool], limit: int) -> int:
    """Largest multiple of MULTIPLE up to `limit` that fits, by doubling and bisection; 0 if none fits."""
    largest, size = 0, MULTIPLE
    while size <= limit and fits(size):
        largest, size = size, 2 * size
    # The least multiple that does not fit, or exceeds the limit.
    too_large = min(size, limit // MULTIPLE * MULTIPLE + MULTIPLE)
    while too_large - largest > MULTIPLE:
        middle = (largest + too_large) // (2 * MULTIPLE) * MULTIPLE
        if fits(middle):
            largest = middle
        else:
            too_large = middle
    return largest


def extrapolated_batch(smaller: Trial, larger: Trial, memory: int, limit: int) -> int:
    """Largest multiple of MULTIPLE up to `limit` whose linearly extrapolated peak fits into `memory` bytes."""
    assert smaller.peak_bytes is not None
    assert larger.peak_bytes is not None
    bytes_per_image = (larger.peak_bytes - smaller.peak_bytes) / (larger.batch_size - smaller.batch_size)
    largest = larger.batch_size + (memory - larger.peak_bytes) / bytes_per_image
    return max(0, min(int(largest), limit)) // MULTIPLE * MULTIPLE


def print_max_batch(config: RunConfig, console: Console) -> int:
    """Searches the largest batch of `config`, prints the trials, and returns it.

    Images and weights are random: neither changes the memory of a step. A data set on the device and averaged weights
    are not counted. In the compiled modes each trial compiles again.

    Raises:
        ValueError: The image size of the data set is not known here.
    """
    device = resolve_device(config.device)
    limit = _images_to_train_on(config)
    with console.status(f"training steps of growing batches on {device}"):
        trials, largest = (_search if device.type == "cuda" else _estimate)(config, device, limit)
    console.print(f"{config.recipe}: training steps on {device}")
    console.print(_table(trials))
    how = "" if device.type == "cuda" else ", an estimate: memory was measured as above and extended in a straight line"
    why = " (all images to train on)" if largest > limit - MULTIPLE else ""
    console.print(f"largest batch: {largest}{why}{how}")
    return largest


def _images_to_train_on(config: RunConfig) -> int:
    available = images_of(config).num_images - config.data.validation_size
    return min(config.data.num_samples or available, available)


def _search(config: RunConfig, device: torch.device, limit: int) -> tuple[list[Trial], int]:
    trials: list[Trial] = []

    def fits(batch_size: int) -> bool:
        trials.append(_try_on_cuda(config, device, batch_size))
        return trials[-1].peak_bytes is not None

    return trials, largest_batch(fits, limit)


def _try_on_cuda(config: RunConfig, device: torch.device, batch_size: int) -> Trial:
    torch._dynamo.reset()  # the last trial's graphs
    gc.collect()  # and its networks
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        images_per_s = time_steps(config, device, batch_size)
    except torch.cuda.OutOfMemoryError:
        return Trial(batch_size=batch_size, peak_bytes=None, images_per_s=None)
    # Reserved, not allocated: memory lost to fragmentation counts as well.
    peak = torch.cuda.max_memory_reserved(device)
    return Trial(batch_size=batch_size, peak_bytes=peak, images_per_s=images_per_s)


def _estimate(config: RunConfig, device: torch.device, limit: int) -> tuple[list[Trial], int]:
    memory = available_memory()
    trials: list[Trial] = []
    size = MULTIPLE
    while size <= limit and not _clearly_rising(trials):
        images_per_s = time_steps(config, device, size)
        trials.append(Trial(batch_size=size, peak_bytes=_peak_of_process(), images_per_s=images_per_s))
        size *= 2
    if not _clearly_rising(trials):  # even all images fit easily
        return trials, limit // MULTIPLE * MULTIPLE
    return trials, extrapolated_batch(trials[-2], trials[-1], memory, limit)


def _clearly_rising(trials: Sequence[Trial]) -> bool:
    """Returns True if each of the last two trials raised the peak of the process, which earlier work may have set."""
    peaks = [trial.peak_bytes or 0 for trial in trials[-3:]]
    return len(peaks) == 3 and all(after - before > CLEAR_RISE for before, after in pairwise(peaks))


def time_steps(config: RunConfig, device: torch.device, batch_size: int) -> float:
    """Images per second of the second training step on random images; the first allocates and compiles."""
    distiller = _distiller(config, device)
    x_natural, labels = images_of(config).batch(batch_size, device)
    _step(distiller, x_natural, labels)
    start = time.perf_counter()
    _step(distiller, x_natural, labels)
    return batch_size / (time.perf_counter() - start)


def _step(distiller: Distiller, x_natural: Tensor, labels: Tensor) -> None:
    distiller.step(x_natural, labels).loss.item()  # which waits for the device


def _distiller(config: RunConfig, device: torch.device) -> Distiller:
    student, teacher = random_networks(config, device)
    optimizer = make_optimizer(student, replace(config.optim, learning_rate=LEARNING_RATE))
    return distiller_of(config, student, teacher, optimizer)


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts it in KiB


def available_memory() -> int:
    """Bytes that this process may hold in total without swapping: its own and the free ones."""
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    free = int(facts["MemAvailable"].split()[0]) * 1024 + pages * resource.getpagesize()
    return min([free, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in CGROUP_LIMITS if Path(path).is_file()]
    return [int(text) for text in texts if text != "max"]


def _table(trials: Sequence[Trial]) -> Table:
    table = Table()
    for column in ("batch", "GiB", "images/s"):
        table.add_column(column, justify="right")
    for trial in sorted(trials, key=lambda trial: trial.batch_size):
        memory = "does not fit" if trial.peak_bytes is None else f"{trial.peak_bytes / GIB:.2f}"
        table.add_row(str(trial.batch_size), memory, "" if trial.images_per_s is None else f"{trial.images_per_s:.1f}")
    return table
