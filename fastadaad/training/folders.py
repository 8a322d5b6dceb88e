"""Folder of a run: a new one, or the folder of a run that is resumed."""

import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastadaad.config_io import read_config
from fastadaad.run_config import RunConfig
from fastadaad.runtime.files import TEMPORARY
from fastadaad.runtime.locks import LOCK_FILE, locked
from fastadaad.training.changes import with_changes
from fastadaad.training.checkpoint import CheckpointFacts, checkpoint_paths, last_facts
from fastadaad.training.fingerprint import DATA, differences, training_facts

log = logging.getLogger(__name__)

RUNS = Path("runs")
RESULTS = "results.csv"  # file in a run's folder; it is written last, after the evaluation on the test set


def choose_run_folder(given: str | None, config: RunConfig, *, resume: bool) -> Path:
    """Chooses the folder for a run of `config`, and logs unfinished runs of the same configuration.

    Makes a new folder in runs/, so that no other process chooses it; leaves a folder that is given as it is.

    Args:
        given: Folder that the user names, or None for one in runs/.
        config: Configuration of the run.
        resume: Choose the latest folder in runs/ with an unfinished run of this configuration, if there is one.

    Raises:
        ValueError: `given` is not empty and no run is to be resumed in it.
    """
    if given is not None:
        folder = Path(given)
        if not (resume and holds_run(folder)):
            check_empty(folder)
        return folder
    unfinished = _unfinished(config)
    stopped = [folder for folder in unfinished if not _is_trained_now(folder)]
    if stopped and resume:
        return stopped[0]
    for folder, facts in unfinished.items():
        advice = "add --resume to resume it" if folder in stopped else "another process trains it now"
        log.info(f"{folder} has the same run, {facts}: {advice}")
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    return new_folder(f"{stamp}_{config.recipe}_{config.method}_seed{config.seed}")


def new_folder(name: str) -> Path:
    """Makes a folder in runs/; a number tells runs apart that start in the same second."""
    folder, number = RUNS / name, 1
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = RUNS / f"{name}_{number}"


def remove_if_empty(folder: Path) -> None:
    """Removes the folder of a run that was refused before it wrote anything, and runs/ if nothing else is in it."""
    with suppress(OSError):
        folder.rmdir()
        if folder.parent == RUNS:
            RUNS.rmdir()


def holds_run(folder: Path) -> bool:
    """Returns True if a process of this package has begun a run in `folder`.

    Before its first checkpoint a run has only its config.json, which has the same name in other programs, or, if it was
    killed while it wrote that file, the temporary file of it; on NFS a lock is a file too.
    """
    own = any(folder.glob(f"config.json.*{TEMPORARY}")) or (folder / LOCK_FILE).exists()
    if own or last_facts(folder) is not None:
        return True
    try:
        read_config(folder / "config.json")
    except ValueError:
        return False
    return True


def check_still_own(folder: Path, known: list[Path]) -> None:
    """Checks under its lock that `folder` is as this process found it.

    Args:
        folder: Folder of the run, locked.
        known: Checkpoints in it when this process looked, before it had the lock.

    Raises:
        ValueError: Another process has trained in the folder since, or another program's config.json is in it.
    """
    remedy = "give another --run-folder"
    if checkpoint_paths(folder) != known:
        raise ValueError(f"another process has trained in {folder} meanwhile: add --resume to go on, or {remedy}")
    if (folder / "config.json").exists() and not holds_run(folder):
        raise ValueError(f"{folder} holds another program's config.json: {remedy}")


def check_empty(folder: Path, option: str = "--run-folder") -> None:
    """Raises ValueError, which names the option, if the folder is a file or holds anything."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = f"give another {option}, or move it away"
    if folder.is_dir() and holds_run(folder):
        facts = last_facts(folder) or "without a checkpoint"
        remedy = f"it has a run, {facts}; to resume it, add --resume; otherwise {remedy}"
    raise ValueError(f"{folder} exists already: {remedy}")


def _is_trained_now(folder: Path) -> bool:
    with locked(folder) as own:
        return not own


def _unfinished(config: RunConfig) -> dict[Path, CheckpointFacts]:
    """Finds the folders in runs/ with an unfinished run of this configuration, the latest first."""
    found = {folder: last_facts(folder) for folder in sorted(RUNS.glob("*/"), reverse=True)}
    unfinished = {
        folder: facts
        for folder, facts in found.items()
        if facts is not None and not (facts.finished and (folder / RESULTS).exists())
    }
    if not unfinished:
        return {}  # does not read the teacher's weights, which may be large
    present = training_facts(config)
    return {folder: facts for folder, facts in unfinished.items() if _is_same_run(facts, config, present)}


def _is_same_run(facts: CheckpointFacts, config: RunConfig, present: dict[str, Any]) -> bool:
    """Returns True if a checkpoint is of a run of `config`, whose facts are `present`, with the run's changes."""
    if facts.changes:
        try:
            present = training_facts(with_changes(config, facts.changes))
        except ValueError:
            return False
    return not differences(facts.run, present | {DATA: facts.run.get(DATA)})
