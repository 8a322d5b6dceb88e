"""Measurement of one cell: both sides alternate in one process, and each is alone when its memory is measured."""

import datetime
import gc
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median

import torch
from torch import nn

from fastadaad.cli.benchmarks.grid import PRECISIONS, Cell
from fastadaad.cli.benchmarks.programs import Program, fast_program, plain_program
from fastadaad.inner.compile_choice import compile_seconds
from fastadaad.run_config import RunConfig
from fastadaad.runtime import machine_cache
from fastadaad.runtime.peak_rates import peak_tflops
from fastadaad.runtime.resident_memory import resident_growth, tensor_bytes
from fastadaad.runtime.text import duration
from fastadaad.runtime.timing import Spread, alternate, ratios
from fastadaad.runtime.version import version
from fastadaad.training.flop_rate import step_flops
from fastadaad.training.synthetic import images_of, random_networks

MIB = 2**20
# Steps before the measured ones: the first compiles and measures a layout, the second runs as all others do.
WARMUP = 2
# Statuses of a side.
MEASURED, OUT_OF_MEMORY = "measured", "out of memory"
NOT_BESIDE = "no room beside ours"  # of the plain one, which fits alone
# Images of the plain step that the first estimate rests on.
NUM_PROBED = 8
ASSUMED_GAIN = 1.5  # of the fast side over the plain one in the first estimate
_QUANTILES = ("p20", "p50", "p80")

Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Side:
    """Milliseconds of one side's steps, one for each round, and its peak memory; None for what is not known."""

    milliseconds: list[float] | None
    peak_bytes: int | None

    def columns(self, prefix: str, batch_size: int) -> Row:
        """Returns images/s, quantiles of the milliseconds and memory; empty for what is not known."""
        empty = f"{prefix}images_per_s", *[f"{prefix}{key}_ms" for key in _QUANTILES]
        memory = "" if self.peak_bytes is None else round(self.peak_bytes / MIB, 1)
        columns: Row = dict.fromkeys(empty, "")
        if self.milliseconds is not None:
            spread = Spread.of(self.milliseconds)
            columns = {empty[0]: float(f"{1e3 * batch_size / spread.p50:.5g}"), **spread.columns(f"{prefix}{{}}_ms")}
        return {**columns, f"{prefix}peak_mib": memory}


def built(make: Callable[[], Program], device: torch.device) -> tuple[Program | None, int | None]:
    """Builds one side and warms it up.

    Returns:
        The program, None if it does not fit; and the bytes that it needs: networks, optimizer and the largest extent of
        a step. On CUDA reserved memory, elsewhere tensors that are kept and the growth of resident memory in a step,
        None on systems other than Linux.
    """
    gc.collect()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device) if on_cuda else tensor_bytes()
    try:
        program = make()
        for _ in range(WARMUP):
            program.step().item()
        gc.collect()
        if not on_cuda:
            return program, _peak_on_host(program, tensor_bytes() - before)
        torch.cuda.empty_cache()  # of compiling; the pool of a graph stays
        torch.cuda.reset_peak_memory_stats(device)
        program.step().item()
        return program, torch.cuda.max_memory_reserved(device) - before
    except (torch.cuda.OutOfMemoryError, MemoryError):
        return None, None


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Keeps Python's collector away from the objects of before: torch's modules alone take it half a second."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _peak_on_host(program: Program, kept: int) -> int | None:
    try:
        return kept + resident_growth(program.step)
    except (OSError, AttributeError):  # no /proc, or another C library
        return None


@dataclass(kw_only=True)
class Measuring:
    """Measures the cells of one recipe.

    Args:
        config: Settings by grid.comparable().
        device: Device of the steps.
        rounds: Measurements of each side of a cell.
    """

    config: RunConfig
    device: torch.device
    rounds: int
    _flops: dict[str, float] = field(default_factory=dict)
    _plain_s: dict[str, float] = field(default_factory=dict)

    @property
    def facts(self) -> Row:
        """Columns that all rows share: the recipe's names, hardware, versions and date."""
        config = self.config
        has_teacher = config.method_row.needs_teacher and config.teacher is not None
        return {
            "recipe": config.recipe,
            "method": config.method,
            "student": config.student.name,
            "teacher": config.teacher.name if has_teacher and config.teacher is not None else "",
            "num_steps": config.inner.num_steps,
            "hardware": machine_cache.hardware(self.device),
            "torch": torch.__version__,
            "triton": version("triton"),
            "python": platform.python_version(),
            "fastadaad": version("fastadaad"),
            "date": datetime.date.today().isoformat(),
        }

    @property
    def notes(self) -> list[str]:
        """Conditions of the measurement, in lines for a reader of the table."""
        facts = self.facts
        versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "triton", "python", "fastadaad"))
        peaks = peak_tflops(self.card)
        lines = [
            f"{facts['hardware']}; {versions}",
            "plain loop: the authors' program in plain torch, uncompiled, the teacher in every step, in the same "
            f"precision (bf16: autocast); random images and weights; both sides alternate in {self.rounds} rounds",
        ]
        if peaks is not None:
            rates = ", ".join(f"{peaks[name]:g} TFLOP/s in {name}" for name in PRECISIONS)
            lines.append(f"peak: data sheet of {self.card}, {rates}")
        elif self.card:
            lines.append(f"peak: no data sheet of {self.card} is known here, so the share is left out")
        return lines

    @property
    def card(self) -> str:
        """Name of the CUDA device, or an empty string."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""

    def row(self, cell: Cell) -> Row:
        """Measures one cell and returns its row of the table."""
        with only_new_objects():
            return self._row(cell)

    def _row(self, cell: Cell) -> Row:
        torch.compiler.reset()  # drops the graphs of the cell before: torch.compile keeps only a few per function
        plain, plain_bytes = self._built(plain_program, cell)
        fits_alone = plain is not None
        fast, fast_bytes = self._built(fast_program, cell)
        if fast is None and plain is not None:
            plain = None  # makes room: ours may fit alone
            fast, fast_bytes = self._built(fast_program, cell)
            if fast is None:
                plain, plain_bytes = self._built(plain_program, cell)
        sides = {name: side for name, side in (("plain", plain), ("fast", fast)) if side is not None}
        timings = self._timings(sides)
        ours = Side(milliseconds=timings.get("fast"), peak_bytes=fast_bytes)
        theirs = Side(milliseconds=timings.get("plain"), peak_bytes=plain_bytes)
        speedup: Row = dict.fromkeys([f"speedup_{key}" for key in _QUANTILES], "")
        if len(timings) == 2:
            speedup = {**ratios(timings["plain"], timings["fast"]).columns("speedup_{}")}
        return {
            "batch_size": cell.batch_size,
            "precision": cell.precision,
            "policy": str(cell.policy),
            "mode": cell.mode,
            "status": MEASURED if ours.milliseconds else OUT_OF_MEMORY,
            "plain_status": MEASURED if theirs.milliseconds else NOT_BESIDE if fits_alone else OUT_OF_MEMORY,
            **ours.columns("", cell.batch_size),
            **theirs.columns("plain_", cell.batch_size),
            **speedup,
            **self._rates(cell, fast, timings.get("fast")),
            "rounds": self.rounds,
        }

    def _built(self, make: Callable[..., Program], cell: Cell) -> tuple[Program | None, int | None]:
        return built(lambda: make(self.config, cell, self.device), self.device)

    def _timings(self, sides: dict[str, Program]) -> dict[str, list[float]]:
        """Returns the milliseconds of each side, without the plain one if both together do not fit."""
        if not sides:
            return {}
        try:
            steps = {name: side.step for name, side in sides.items()}
            return alternate(steps, self.device, rounds=self.rounds, warmup=0)
        except torch.cuda.OutOfMemoryError:
            return self._timings({name: side for name, side in sides.items() if name == "fast" and len(sides) > 1})

    def _rates(self, cell: Cell, fast: Program | None, milliseconds: list[float] | None) -> Row:
        """Returns FLOPs, TFLOP/s, and their share of the card's peak in this precision."""
        peaks = peak_tflops(self.card)
        peak = None if peaks is None else peaks[cell.precision]
        names = ("gflop_per_image", "tflop_per_s", "of_peak", "peak_tflop_per_s", "card")
        if fast is None or fast.distiller is None or milliseconds is None:
            return dict(zip(names, ("", "", "", peak or "", self.card), strict=True))
        policy = str(cell.policy)
        if policy not in self._flops:
            images = images_of(self.config).batch(2, self.device)
            self._flops[policy] = step_flops(fast.distiller, *images, epoch=0)
        flops = self._flops[policy]
        tflops = 1e-9 * flops * cell.batch_size / median(milliseconds)
        share = "" if peak is None else float(f"{tflops / peak:.4g}")
        figures = float(f"{1e-9 * flops:.5g}"), float(f"{tflops:.4g}"), share, peak or "", self.card
        return dict(zip(names, figures, strict=True))

    def estimated_seconds(self, cell: Cell) -> float:
        """Estimates the seconds that a cell takes, from one plain step on a few images in its precision."""
        if cell.precision not in self._plain_s:
            self._plain_s[cell.precision] = self._probe(cell)
        plain = cell.batch_size * self._plain_s[cell.precision]
        steps = self.rounds + WARMUP + 1
        return steps * plain * (1 + 1 / ASSUMED_GAIN) + (0.0 if cell.mode == "eager" else self._compile_seconds)

    def _probe(self, cell: Cell) -> float:
        """Returns the seconds of a plain step per image."""
        few = Cell(
            batch_size=min(NUM_PROBED, cell.batch_size), precision=cell.precision, policy=cell.policy, mode=cell.mode
        )
        program = plain_program(self.config, few, self.device)
        if self.device.type == "cuda":
            program.step().item()  # the first one loads kernels
        begin = time.perf_counter()
        program.step().item()
        return (time.perf_counter() - begin) / few.batch_size

    @cached_property
    def _compile_seconds(self) -> float:
        networks: list[nn.Module] = [
            network for network in random_networks(self.config, torch.device("cpu")) if network is not None
        ]
        return compile_seconds(networks)


class Remaining:
    """Time that the cells still take: estimated at first, then corrected by the cells that are finished.

    Args:
        measuring: Measurement of a cell.
        cells: All cells, in order.
    """

    def __init__(self, measuring: Measuring, cells: Sequence[Cell]) -> None:
        self._measuring = measuring
        self._estimates = {cell: measuring.estimated_seconds(cell) for cell in cells}
        self._left = dict(self._estimates)
        self._seconds = self._estimated = 0.0

    @property
    def first_estimate(self) -> str:
        """The whole time in words, with what it rests on."""
        compiling = any(cell.mode != "eager" for cell in self._estimates)
        return (
            f"about {duration(sum(self._estimates.values()))}: estimated from a plain step of up to {NUM_PROBED} images"
            f"{' and the usual time to compile' if compiling else ''}"
        )

    def measured(self, cell: Cell) -> Row:
        """Measures a cell, and corrects the estimate of the others by its time."""
        begin = time.perf_counter()
        row = self._measuring.row(cell)
        self._seconds += time.perf_counter() - begin
        self._estimated += self._left.pop(cell)
        return row

    def describe(self) -> str:
        """The time left in words, with a semicolon before it; an empty string after the last cell."""
        if not self._left:
            return ""
        return f"; about {duration(self._seconds / self._estimated * sum(self._left.values()))} left"
