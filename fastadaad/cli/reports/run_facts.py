"""State of a run, read from its folder: status, epoch, accuracy, time of the last change."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fastadaad.config_io import read_config
from fastadaad.runtime.locks import locked
from fastadaad.runtime.text import InputError
from fastadaad.training.checkpoint import last_facts
from fastadaad.training.folders import RESULTS, holds_run
from fastadaad.training.log import read_metrics

EXPERIMENTS = "experiments"
"""Folder of the runs of a comparison."""
TRAINED = "training.json"
"""File that a comparison writes at the end of a training; `train` writes RESULTS instead."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """State of one run.

    Attributes:
        folder: Folder of the run.
        status: running, stopped, finished, or not evaluated (trained, without the attacks on the test set).
        epoch: Number of complete epochs.
        epochs: Number of epochs of the whole run; None before the first checkpoint.
        natural_accuracy: Of the best epoch on the validation split, a fraction; None if it was not measured.
        robust_accuracy: As natural_accuracy, under the attack of the validation.
        changed_at: Time of the last change in seconds since 1970.
        versions: Versions of the programs that wrote the last checkpoint.
    """

    folder: Path
    status: str
    epoch: int
    epochs: int | None
    natural_accuracy: float | None
    robust_accuracy: float | None
    changed_at: float
    versions: dict[str, str]

    @property
    def age_s(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.changed_at)


def is_comparison(folder: Path) -> bool:
    """Returns True if `folder` is one that compare or sweep-epsilon writes to."""
    return (folder / EXPERIMENTS).is_dir()


def run_folders(folder: Path) -> Iterator[Path]:
    """Yields the folders of the runs in `folder`, those of comparisons included: `folder` itself, or its subfolders."""
    if is_comparison(folder):
        folder = folder / EXPERIMENTS
    elif holds_run(folder):
        yield folder
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and is_comparison(path):
            yield from run_folders(path)
        elif path.is_dir() and holds_run(path):
            yield path


def facts_of(folder: Path) -> RunFacts:
    """Reads the state of the run in `folder`; a damaged metrics.csv leaves its accuracies out."""
    facts, row = last_facts(folder), {}
    with suppress(InputError):
        measured = [line for line in read_metrics(folder) if "robust_accuracy" in line]
        row = max(measured, key=lambda line: line["robust_accuracy"], default={})
    return RunFacts(
        folder=folder,
        status=_status(folder, is_trained=facts is not None and facts.finished),
        epoch=0 if facts is None else facts.epoch,
        epochs=None if facts is None else facts.epochs,
        natural_accuracy=row.get("natural_accuracy"),
        robust_accuracy=row.get("robust_accuracy"),
        changed_at=max(path.stat().st_mtime for path in _written(folder)),
        versions={} if facts is None else facts.versions,
    )


def _written(folder: Path) -> Iterator[Path]:
    """Yields the folder's files that a run writes; the folder itself if none exists."""
    names = ("config.json", "log.txt", "metrics.csv", RESULTS, TRAINED)
    files = [path for path in map(folder.joinpath, names) if path.exists()]
    yield from [*files, *folder.glob("checkpoints/*"), *folder.glob("attacks/*.json")] or [folder]


def _status(folder: Path, *, is_trained: bool) -> str:
    if _is_locked(folder) or _is_locked(folder.with_name(f"{folder.name}.lock")):
        return "running"
    if not is_trained:
        return "stopped"
    return "finished" if (folder / RESULTS).exists() or _has_all_attacks(folder) else "not evaluated"


def _is_locked(path: Path) -> bool:
    """Returns True if another process holds the lock of `path`; False too if it cannot be opened."""
    try:
        with locked(path) as own:
            return not own
    except OSError:
        return False


def _has_all_attacks(folder: Path) -> bool:
    """Returns True if an experiment of a comparison has a result of each attack of its configuration."""
    if not (folder / TRAINED).exists():
        return False
    names = {path.name.rpartition("_")[0] for path in folder.glob("attacks/*.json")}
    with suppress(ValueError):
        return set(read_config(folder / "config.json").evaluation.attacks) <= names
    return False
