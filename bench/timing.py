"""Timing protocol of all benchmarks: variants alternate in one process; rows have p20, p50, p80 and hardware."""

import csv
import dataclasses
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from fastadaad.runtime import machine_cache

RESULTS = Path(__file__).parent / "results"
_CACHE_BYTES = 256 * 2**20  # more than the L2 cache of any current GPU
_MIN_SAMPLE_S = 2e-3  # a sample on the CPU repeats its variant for at least this long

Variants = Mapping[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Quantiles of n measurements."""

    p20: float
    p50: float
    p80: float
    n: int

    def columns(self, name: str, scale: float = 1.0) -> dict[str, float]:
        """Returns p20, p50 and p80 as columns of a CSV row, to five digits.

        Args:
            name: Name of the columns, with one {} for the quantile.
            scale: Factor of the values, such as 1e3 for us.
        """
        values = {"p20": self.p20, "p50": self.p50, "p80": self.p80}
        return {name.format(key): float(f"{scale * value:.5g}") for key, value in values.items()}

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Quantiles of one or more values, interpolated between values."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        quintiles = statistics.quantiles(values, n=5, method="inclusive")
        return cls(quintiles[0], statistics.median(values), quintiles[-1], len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the ratio in each round: a busy or throttled machine affects both measurements of a round alike."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def alternate(variants: Variants, device: torch.device, *, rounds: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Returns the milliseconds of each variant in each round.

    The order rotates with the round, so that drift affects all variants alike.

    Args:
        variants: Functions to time, by name.
        device: Device that the functions run on; CUDA devices are timed by events.
        rounds: Measurements of each variant.
        warmup: Calls of each variant before the first round.
    """
    for run in variants.values():
        for _ in range(warmup):
            run()
    sample = _cuda_sampler(device) if device.type == "cuda" else _cpu_sampler(variants)
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in rotated(list(variants), number):
            samples[name].append(sample(name, variants[name]))
    return samples


def rotated(names: list[str], number: int) -> list[str]:
    """The names in the order of round `number`: it begins one name later in each round."""
    shift = number % len(names)
    return names[shift:] + names[:shift]


def _cpu_sampler(variants: Variants):
    """Sampler that uses the host's clock; a sample is the mean over the calls that fill _MIN_SAMPLE_S."""

    def seconds(run, repeats):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start

    repeats = {name: max(1, round(_MIN_SAMPLE_S / seconds(run, 1))) for name, run in variants.items()}

    def sample(name, run):
        return 1e3 * seconds(run, repeats[name]) / repeats[name]

    return sample


def _cuda_sampler(device: torch.device):
    """Sampler that uses CUDA events and waits for each sample.

    Queued samples would hide the launches of one behind the kernels of the one before. Clearing the L2 cache first
    keeps the device busy while a single kernel is launched, but not while a step of hundreds of launches is.
    """
    cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)

    def sample(name, run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    return sample


def hardware(device: torch.device) -> str:
    """CPU model, or name and driver version of the GPU."""
    if device.type == "cuda":
        return machine_cache.hardware(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def commit_of(folder: Path) -> str:
    """Commit of the repository around `folder`, with -dirty if tracked files other than results have changed."""
    commit = _git(folder, "describe", "--always", "--abbrev=12") or "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True).stdout.strip()


def conditions(device: torch.device) -> dict[str, object]:
    """Conditions of a measurement: command, hardware, threads, versions, commit and date, the columns of every row."""
    arguments = [Path(sys.argv[0]).parent.name, *sys.argv[1:]] if sys.argv[0].endswith("__main__.py") else sys.argv
    return {
        "command": " ".join(["python", "-m", *arguments]),
        "hardware": hardware(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "commit": commit_of(Path(__file__).parent),
        "date": datetime.date.today().isoformat(),
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, object]], device: torch.device | None) -> None:
    """Appends rows to a CSV file.

    Args:
        path: The file; it is created if missing.
        rows: Rows with equal columns.
        device: Device of the measurement, whose conditions() each row gets; None for computed rows.

    Raises:
        ValueError: The file's header has other columns.
    """
    rows = [{**row, **(conditions(device) if device is not None else {})} for row in rows]
    columns = list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.exists()
    if exists and (header := path.read_text().partition("\n")[0].split(",")) != columns:
        raise ValueError(f"{path}: its columns are {header}, not {columns}; move the file or write to another one")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not exists:
            writer.writeheader()
        writer.writerows(rows)
