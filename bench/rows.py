"""Rows of bench/results: their conditions, such as hardware, versions and commit, and their CSV files."""

import csv
import datetime
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from fastadaad.runtime import machine_cache

from .pages import rows_of

RESULTS = Path(__file__).parent / "results"


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


def with_conditions(rows: Iterable[Mapping[str, object]], device: torch.device | None) -> list[dict[str, object]]:
    """Returns rows with the conditions() of the measurement on a device; computed rows, of no device, as they are."""
    return [{**row, **(conditions(device) if device is not None else {})} for row in rows]


def write_rows(path: Path, rows: Iterable[Mapping[str, object]], device: torch.device | None) -> None:
    """Appends rows to a CSV file.

    Args:
        path: The file; it is created if missing.
        rows: Rows with equal columns.
        device: Device of the measurement, whose conditions() each row gets; None for computed rows.

    Raises:
        ValueError: The file's header has other columns.
    """
    rows = with_conditions(rows, device)
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


def replace_rows(path: Path, rows: Iterable[Mapping[str, object]], keys: Sequence[str]) -> None:
    """Writes rows measured on the CPU to a CSV file, whose rows of other students stay.

    Args:
        path: The file; it is created if missing.
        rows: Rows with equal columns.
        keys: Columns that name a student: a row of the file with the values of a new one gives way to it.

    Raises:
        ValueError: The file's header has other columns; the file stays as it is.
    """
    added = with_conditions(rows, torch.device("cpu"))
    known, students = rows_of(path), {tuple(str(row[key]) for key in keys) for row in added}
    if known and list(known[0]) != list(added[0]):
        raise ValueError(f"{path}: its columns are {list(known[0])}, not {list(added[0])}; move the file")
    kept = [row for row in known if tuple(row[key] for key in keys) not in students]
    path.unlink(missing_ok=True)
    write_rows(path, [*kept, *added], None)
