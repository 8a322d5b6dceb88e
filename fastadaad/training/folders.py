"""Folder of a run: a new one, or the folder of a run that is resumed."""

import logging
import time
from pathlib import Path

from fastadaad.run_config import RunConfig
from fastadaad.runtime.locks import locked
from fastadaad.training.checkpoint import CheckpointFacts, last_facts
from fastadaad.training.fingerprint import DATA, differences, training_facts

log = logging.getLogger(__name__)

RUNS = Path("runs")
RESULTS = "results.csv"  # file in a run's folder; it is written last, after the evaluation on the test set


def choose_run_folder(given: str | None, config: RunConfig, *, resume: bool) -> Path:
    """Chooses the folder for a run of `config`, and logs unfinished runs of the same configuration.

    Args:
        given: Folder that the user names, or None for one in runs/.
        config: Configuration of the run.
        resume: Choose the latest folder in runs/ with an unfinished run of this configuration, if there is one.

    Raises:
        ValueError: `given` is not empty and no run is to be resumed in it.
    """
    if given is not None:
        folder = Path(given)
        # A run may have been killed before its first checkpoint.
        if not (resume and any(folder.glob("config.json*"))):
            _check_empty(folder)
        return folder
    unfinished = _unfinished(config)
    stopped = [folder for folder in unfinished if not _is_trained_now(folder)]
    if stopped and resume:
        return stopped[0]
    for folder, facts in unfinished.items():
        advice = "add --resume to resume it" if folder in stopped else "another process trains it now"
        log.info(f"{folder} has the same run, {facts}: {advice}")
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = RUNS / f"{stamp}_{config.recipe}_{config.method}_seed{config.seed}"
    _check_empty(folder)
    return folder


def _check_empty(folder: Path) -> None:
    """Raises ValueError if the folder is a file or holds anything."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = "give another --run-folder, or move it away"
    if (facts := last_facts(folder)) is not None:
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
    return {
        folder: facts
        for folder, facts in unfinished.items()
        if not differences(facts.run, present | {DATA: facts.run.get(DATA)})
    }
