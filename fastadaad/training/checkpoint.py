"""Checkpoints of a run: one safetensors file each, whose header has everything but the tensors as plain JSON.

A file is written in one piece and carries the sha256 of what it holds; the last two are kept. Nothing in it is executed
when it is read.
"""

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from fastadaad.models.weights_checks import check_safetensors
from fastadaad.models.weights_writing import ENTRY, serialized
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.text import printable
from fastadaad.training.nested_state import join_tensors, split_tensors

log = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINTS = "checkpoints"  # in the run's
NUM_KEPT = 2


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line that names it and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """What may be asked of a checkpoint without reading its tensors."""

    run: dict[str, Any]
    """What the weights depend on, see run_facts.py; the images are the item data_sha256."""
    versions: dict[str, str]
    processes: int
    epoch: int
    """Epochs that are complete, of how many:"""
    epochs: int
    finished: bool

    def __post_init__(self) -> None:
        """Raises TypeError where a stranger's file has something else in the place of what is compared by its names."""
        if not (isinstance(self.run, dict) and isinstance(self.versions, dict)):
            raise TypeError("run and versions are no dicts")

    def __str__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"{state}, {self.epoch} of {self.epochs} epochs trained"


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """What a run depends on at one moment."""

    path: Path
    facts: CheckpointFacts
    state: Any
    """As nested_state.py has it."""


def checkpoint_paths(run_folder: Path) -> list[Path]:
    """The checkpoints of a run, the latest first."""
    return sorted((run_folder / CHECKPOINTS).glob("step-*.safetensors"), reverse=True)


def write_checkpoint(run_folder: Path, step: int, facts: CheckpointFacts, state: Any) -> Path:
    """Add a checkpoint of optimiser step `step` to a run, then delete all but the last two.

    Raises OSError where it cannot be written; then those before are still there.
    """
    plain, tensors = split_tensors(state)
    content = {"format": FORMAT, "facts": asdict(facts), "state": plain}
    folder = run_folder / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:09d}.safetensors"
    write_atomically(path, serialized(tensors, content=content, sha256=_sha256(tensors, content)))
    for old in checkpoint_paths(run_folder)[NUM_KEPT:]:
        old.unlink()
    return path


def read_checkpoint(path: Path) -> RunCheckpoint:
    """The checkpoint in `path`, verified. Raises CheckpointError for a truncated, altered or foreign file."""
    header = _header(path)
    try:
        tensors = load(path.read_bytes())
        content = header["content"]
        if _sha256(tensors, content) != header["sha256"]:
            raise CheckpointError(f"{path} is damaged: its contents do not have the checksum that was written with it")
        facts = CheckpointFacts(**content["facts"])
        return RunCheckpoint(path=path, facts=facts, state=join_tensors(content["state"], tensors))
    except (OSError, SafetensorError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error


def last_facts(run_folder: Path) -> CheckpointFacts | None:
    """Of the latest checkpoint of a run that has some, without its tensors and unverified; None: there is none."""
    for path in checkpoint_paths(run_folder):
        with suppress(CheckpointError, KeyError, TypeError):
            return CheckpointFacts(**_header(path)["content"]["facts"])
    return None


def last_checkpoint(run_folder: Path) -> RunCheckpoint | None:
    """Reads the latest usable checkpoint of a run; None if the run has no checkpoint.

    A later one that is damaged is logged and renamed, so that it does not count as one of those to keep.

    Raises:
        CheckpointError: There are checkpoints and none can be used.
    """
    damaged: list[Path] = []
    for path in checkpoint_paths(run_folder):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            log.warning(f"{error}; trying the one before")
            damaged.append(path)
            continue
        for later in damaged:
            with suppress(OSError):
                later.rename(later.with_suffix(".damaged"))
        return checkpoint
    if damaged:
        raise CheckpointError(
            f"none of the {len(damaged)} checkpoints in {run_folder / CHECKPOINTS} can be used: to start anew, move "
            f"{run_folder} away"
        )
    return None


def _header(path: Path) -> dict[str, Any]:
    """The JSON in the header, of the form that write_checkpoint gives it."""
    try:
        check_safetensors(path)
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})[ENTRY])
        found = header["content"]["format"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found}, and this version reads {FORMAT}: resume with that version")
    return header


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is no checkpoint of a run, or is damaged ({' '.join(str(error).split())})")


def _sha256(tensors: dict[str, Tensor], content: dict[str, Any]) -> str:
    """Of a file that holds these and no checksum."""
    return hashlib.sha256(serialized(tensors, content=content)).hexdigest()
