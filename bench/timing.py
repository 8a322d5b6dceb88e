"""The one timing protocol: variants alternate in one process; p20, p50 and p80; each row names its hardware."""

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

RESULTS = Path(__file__).parent / "results"
_CACHE_BYTES = 256 * 2**20  # more than the L2 cache of any current GPU
_MIN_SAMPLE_S = 2e-3  # on the CPU a sample repeats its variant for at least this long

Variants = Mapping[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Spread:
    """Quantiles of n measurements."""

    p20: float
    p50: float
    p80: float
    n: int

    def columns(self, name: str, scale: float = 1.0) -> dict[str, float]:
        """p20, p50 and p80 for a CSV row, scaled, to five digits; `name` has one {} for the quantile."""
        values = {"p20": self.p20, "p50": self.p50, "p80": self.p80}
        return {name.format(key): float(f"{scale * value:.5g}") for key, value in values.items()}

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more, between which the quantiles are interpolated."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        quintiles = statistics.quantiles(values, n=5, method="inclusive")
        return cls(quintiles[0], statistics.median(values), quintiles[-1], len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of the ratio in each round: what a busy or throttled machine does to a round, it does to both of its parts."""
    return Spread.of([a / b for a, b in zip(numerators, denominators, strict=True)])


def alternate(variants: Variants, device: torch.device, *, rounds: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Milliseconds of each variant in each round; the order rotates with the round, so that drift meets all alike."""
    for run in variants.values():
        for _ in range(warmup):
            run()
    sample = _cuda_sampler(device) if device.type == "cuda" else _cpu_sampler(variants)
    names = list(variants)
    samples = {name: [] for name in names}
    for i in range(rounds):
        shift = i % len(names)
        for name in names[shift:] + names[:shift]:
            samples[name].append(sample(name, variants[name]))
    return {name: [read() for read in reads] for name, reads in samples.items()}


def _cpu_sampler(variants: Variants):
    """Sampler by the host's clock; a sample is the mean of as many calls as fill _MIN_SAMPLE_S."""

    def seconds(run, repeats):
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return time.perf_counter() - start

    repeats = {name: max(1, round(_MIN_SAMPLE_S / seconds(run, 1))) for name, run in variants.items()}

    def sample(name, run):
        milliseconds = 1e3 * seconds(run, repeats[name]) / repeats[name]
        return lambda: milliseconds

    return sample


def _cuda_sampler(device: torch.device):
    """Sampler by CUDA events; clearing the L2 cache first also keeps the queue busy while the host launches."""
    cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)

    def sample(name, run):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cache.zero_()
        start.record()
        run()
        end.record()

        def read():
            end.synchronize()
            return start.elapsed_time(end)

        return read

    return sample


def hardware(device: torch.device) -> str:
    """CPU model, or GPU name and driver version, of the device."""
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
        return f"{torch.cuda.get_device_name(device)}, driver {driver}"
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
    """The commit of the repository that `folder` is in, with -dirty where files other than results are not as in it."""
    commit = _git(folder, "describe", "--always", "--abbrev=12") or "unknown"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)bench/results")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True).stdout.strip()


def conditions(device: torch.device) -> dict[str, object]:
    """What a figure depends on: the columns that every row of bench/results/ has."""
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
    """Append the rows to a CSV file, each with the conditions on its device; device None: computed, not measured.

    Raises ValueError where the file's header has other columns.
    """
    rows = [{**row, **(conditions(device) if device is not None else {})} for row in rows]
    columns = list(rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    exists = path.exists()
    if exists and (header := path.read_text().partition("\n")[0].split(",")) != columns:
        raise ValueError(f"{path}: its columns are {header}, not {columns}; move the file away or write to another one")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if not exists:
            writer.writeheader()
        writer.writerows(rows)
