"""Where a run is written: a new folder, or that of a run which goes on."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastadaad.locks import locked
from fastadaad.run_checkpoint import CheckpointError, checkpoint_paths, read_facts
from fastadaad.run_config import RunConfig
from fastadaad.run_facts import DATA, differences, training_facts

RUNS = Path("runs")


def choose_run_folder(given: str | None, config: RunConfig, *, resume: bool, say: Callable[[str], object]) -> Path:
    """The folder for a run of `config`: the `given` one, or one in runs/.

    With `resume` that is the latest in runs/ with an unfinished run of this configuration, else a new one; `say` hears
    of what there is. Raises ValueError where `given` holds something and must not.
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
    for folder in unfinished:
        advice = "add --resume to go on with it" if folder in stopped else "another process trains it now"
        say(f"{folder} has the same run, {read_facts(checkpoint_paths(folder)[0])}: {advice}")
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = RUNS / f"{stamp}_{config.recipe}_{config.method}_seed{config.seed}"
    _check_empty(folder)
    return folder


def _check_empty(folder: Path) -> None:
    """Raises ValueError where there is something already."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = "give another --run-folder, or move it away"
    for path in checkpoint_paths(folder)[:1]:
        with suppress(CheckpointError):
            remedy = f"it has a run, {read_facts(path)}; to go on with it, add --resume; else {remedy}"
    raise ValueError(f"{folder} exists already: {remedy}")


def _is_trained_now(folder: Path) -> bool:
    with locked(folder) as own:
        return not own


def _unfinished(config: RunConfig) -> list[Path]:
    """Folders in runs/ with an unfinished run of this configuration, the latest first."""
    facts = {}
    for folder in sorted(RUNS.glob("*/"), reverse=True):
        for path in checkpoint_paths(folder)[:1]:
            with suppress(CheckpointError):
                facts[folder] = read_facts(path)
    facts = {folder: each for folder, each in facts.items() if not each.finished}
    if not facts:
        return []  # without a look at the teacher's weights, which may be large
    present = json.loads(json.dumps(training_facts(config)))
    return [folder for folder, each in facts.items() if not differences(each.run, present | {DATA: each.run.get(DATA)})]
