"""Resuming a run: its last checkpoint, the check that it belongs to the run, and the state that it holds."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastadaad.run_config import RunConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.files import remove_temporaries
from fastadaad.runtime.locks import run_lock
from fastadaad.runtime.progress import Counts
from fastadaad.runtime.torch_settings import own_random_states, random_states, restore_random_states
from fastadaad.training.changes import Change, allowed_changes, with_changes
from fastadaad.training.checkpoint import (
    CHECKPOINTS,
    CheckpointError,
    CheckpointFacts,
    RunCheckpoint,
    last_checkpoint,
)
from fastadaad.training.distiller import Distiller
from fastadaad.training.fingerprint import differences, versions
from fastadaad.training.state import TrainingState

log = logging.getLogger(__name__)


def find_checkpoint(folder: Path, process_group: ProcessGroup) -> RunCheckpoint | None:
    """Reads the last usable checkpoint of a run on rank 0, and returns it on all ranks, or None without one.

    Removes temporary files that a killed process has left.

    Raises:
        CheckpointError: There are checkpoints and none can be used.
    """
    checkpoint = None
    if process_group.is_first and folder.is_dir():
        with run_lock(folder):  # temporary files of a process that trains in the folder now must stay
            for place in (folder, folder / CHECKPOINTS):
                remove_temporaries(place)
            checkpoint = last_checkpoint(folder)
    return process_group.broadcast(checkpoint)


def check_same_run(
    checkpoint: RunCheckpoint, run_facts: dict[str, Any], process_group: ProcessGroup, changed: Collection[str] = ()
) -> None:
    """Raises CheckpointError if the checkpoint belongs to another run; logs differences that affect rounding.

    Args:
        checkpoint: Checkpoint to resume from.
        run_facts: Facts of the resumed run.
        process_group: Ranks that train together.
        changed: Names of settings that may differ.
    """
    facts, path = checkpoint.facts, checkpoint.path
    if found := [text for text in differences(facts.run, run_facts) if text.partition(" ")[0] not in changed]:
        only_precision = all(text.startswith("precision.") for text in found)
        hint = f" ({_precision_settings(facts)}; precision auto depends on the device)" if only_precision else ""
        raise CheckpointError(
            f"{path} belongs to another run: {', '.join(found)}; give the same settings{hint}, or another --run-folder"
        )
    saved = facts.versions | {"processes": facts.processes}
    if found := differences(saved, versions() | {"processes": process_group.size}):
        log.info(f"the rest of the run may differ in rounding from an uninterrupted one: {', '.join(found)}")


def _precision_settings(facts: CheckpointFacts) -> str:
    """Returns the settings that give a saved run's precision."""
    return " ".join(f"precision.{network}={name}" for network, name in facts.run["precision"].items())


def changed_config(
    config: RunConfig, checkpoint: RunCheckpoint | None, allow: Sequence[str]
) -> tuple[RunConfig, list[Change]]:
    """Returns the configuration of a resumed run, and all settings that it has changed since its beginning.

    Args:
        config: Configuration that the run began with.
        checkpoint: Checkpoint to resume from, or None without one.
        allow: Settings to change now, as `section.field=value`.

    Raises:
        ValueError: There is nothing to resume, or a setting cannot change.
    """
    if checkpoint is None:
        if allow:
            raise ValueError(f"--allow {allow[0]} changes a resumed run and there is no checkpoint: leave out --allow")
        return config, []
    before = with_changes(config, checkpoint.facts.changes)
    changed, changes = allowed_changes(before, allow)
    return changed, [*checkpoint.facts.changes, *changes]


def check_same_run_on_all_ranks(run_facts: dict[str, Any], process_group: ProcessGroup) -> None:
    """Raises ValueError if a rank has other settings or other teacher weights."""
    facts = process_group.all_gather(run_facts)
    for rank, other in enumerate(facts):
        if found := differences(facts[0], other):
            raise ValueError(f"rank {rank} has another run than rank 0: {', '.join(found)}; start all of them alike")


def saved_state(
    state: TrainingState, distiller: Distiller, counts: Counts, process_group: ProcessGroup
) -> dict[str, Any]:
    """Returns everything that a resumed run needs to end with the same weights. Waits for all ranks."""
    return {
        "training": state.state_dict(),
        "distiller": distiller.state_dict(),
        "random_states": process_group.all_gather(random_states()),
        "counts": asdict(counts),
    }


def load_state(
    saved: dict[str, Any], state: TrainingState, distiller: Distiller, process_group: ProcessGroup, seed: int
) -> tuple[Counts, dict[str, Any] | None]:
    """Restores a saved_state(), except for the random states.

    Returns:
        Counts of images and seconds so far, and the random states of this rank; None for a rank that the saved run did
        not have.
    """
    state.load_state_dict(saved["training"])
    distiller.load_state_dict(saved["distiller"])
    own = None
    if process_group.rank < len(saved["random_states"]):
        own = saved["random_states"][process_group.rank]
        with own_random_states(seed):
            restore_random_states(own)  # raises here if they are damaged
    return Counts(**saved["counts"]), own
