"""The one timing protocol: variants alternate in one process; median and spread; each row names its hardware."""

import csv
import dataclasses
import datetime
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
_CACHE_BYTES = 256 * 2**20  # more than the L2 cache of any current GPU
_MIN_SAMPLE_S = 2e-3  # on the CPU a sample repeats its variant for at least this long

Variants = Mapping[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over `samples` samples."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    samples: int

    def columns(self) -> dict[str, object]:
        """For a CSV row, to a tenth of a microsecond."""
        return {name: round(value, 4) for name, value in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Timing":
        quintiles = statistics.quantiles(milliseconds, n=5, method="inclusive")
        return cls(statistics.median(milliseconds), quintiles[0], quintiles[-1], len(milliseconds))


def alternate(variants: Variants, device: torch.device, *, rounds: int = 30, warmup: int = 3) -> dict[str, Timing]:
    """Time each variant once a round, in an order that rotates with the round, so that drift meets all alike."""
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
    return {name: Timing.of([read() for read in reads]) for name, reads in samples.items()}


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


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


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
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def write_rows(path: Path, rows: Iterable[Mapping[str, object]], device: torch.device) -> None:
    """Append the rows, each with its conditions, to a CSV file; ValueError where its header has other columns."""
    rows = [{**row, **conditions(device)} for row in rows]
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
