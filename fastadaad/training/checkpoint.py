"""Checkpoints of a run: one safetensors file each; the header holds everything but the tensors, as plain JSON.

A file is written atomically and carries the sha256 of its contents. The last two are kept. Reading a file executes
nothing in it.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from fastadaad.models.weights_checks import check_safetensors
from fastadaad.models.weights_writing import ENTRY, serialized
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.text import printable

log = logging.getLogger(__name__)

FORMAT = 1
CHECKPOINTS = "checkpoints"  # folder in the run's folder
NUM_KEPT = 2

# In the JSON a tensor is a dict with this one key, whose value is the tensor's name.
_TENSOR = "<tensor>"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line with its path and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Facts about a checkpoint that can be read without its tensors."""

    run: dict[str, Any]
    """Settings that the weights depend on, see fingerprint.py; the item data_sha256 identifies the images."""
    versions: dict[str, str]
    processes: int
    """Number of ranks."""
    epoch: int
    """Number of complete epochs."""
    epochs: int
    """Number of epochs of the whole run."""
    finished: bool
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that the run has changed, see changes.py."""

    def __post_init__(self) -> None:
        """Raises TypeError if an untrusted file has values of other types, which are read by their keys."""
        if not (isinstance(self.run, dict) and isinstance(self.versions, dict)):
            raise TypeError("run and versions are no dicts")
        is_list = isinstance(self.changes, list) and all(isinstance(change, dict) for change in self.changes)
        if not is_list or any(set(change) != {"step", "setting", "before", "after"} for change in self.changes):
            raise TypeError("changes are no list of changes")

    def __str__(self) -> str:
        state = "finished" if self.finished else "not finished"
        return f"{state}, {self.epoch} of {self.epochs} epochs trained"


@dataclass(frozen=True, kw_only=True)
class RunCheckpoint:
    """A checkpoint that has been read."""

    path: Path
    facts: CheckpointFacts
    state: Any
    """Nested state as join_tensors returns it."""


def checkpoint_paths(run_folder: Path) -> list[Path]:
    """Lists the checkpoints of a run, the latest first."""
    return sorted((run_folder / CHECKPOINTS).glob("step-*.safetensors"), reverse=True)


def write_checkpoint(run_folder: Path, step: int, facts: CheckpointFacts, state: Any) -> Path:
    """Adds a checkpoint of optimiser step `step` to a run, then deletes all but the last two.

    Args:
        run_folder: Folder of the run.
        step: Number of optimiser steps so far, which names the file.
        facts: Facts about the run.
        state: Nested state of tensors, dicts, lists, numbers, strings and None.

    Returns:
        Path of the new file.

    Raises:
        OSError: The file cannot be written; earlier checkpoints are kept.
        TypeError: The state holds a value of another type.
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
    """Reads and verifies a checkpoint.

    Raises:
        CheckpointError: The file is truncated, altered or not a checkpoint.
    """
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
    """Reads the facts of a run's latest readable checkpoint, unverified; None if there is no checkpoint."""
    for path in checkpoint_paths(run_folder):
        with suppress(CheckpointError, KeyError, TypeError):
            return CheckpointFacts(**_header(path)["content"]["facts"])
    return None


def last_checkpoint(run_folder: Path) -> RunCheckpoint | None:
    """Reads the latest usable checkpoint of a run; None if the run has no checkpoint.

    A damaged one after it is logged and renamed, so that it does not count as one of the checkpoints to keep.

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
            f"none of the {len(damaged)} checkpoints in {run_folder / CHECKPOINTS} can be used: to start again, move "
            f"{run_folder} away"
        )
    return None


def _header(path: Path) -> dict[str, Any]:
    """Reads the JSON that write_checkpoint puts into the header."""
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
    """Checksum of a file with these contents and no checksum."""
    return hashlib.sha256(serialized(tensors, content=content)).hexdigest()


def split_tensors(state: Any, name: str = "state") -> tuple[Any, dict[str, Tensor]]:
    """Splits a nested state into plain JSON, in which references replace the tensors, and tensors by dotted name.

    Keys of dicts become strings and tuples become lists.

    Raises:
        TypeError: The state holds anything but dicts, lists, tuples, numbers, strings, None and tensors.
    """
    if isinstance(state, Tensor):
        return {_TENSOR: name}, {name: state}
    if isinstance(state, Mapping):
        items = {str(key): split_tensors(value, f"{name}.{key}") for key, value in state.items()}
        return {key: plain for key, (plain, _) in items.items()}, _united(tensors for _, tensors in items.values())
    if isinstance(state, (list, tuple)):
        values = [split_tensors(value, f"{name}.{index}") for index, value in enumerate(state)]
        return [plain for plain, _ in values], _united(tensors for _, tensors in values)
    if state is None or isinstance(state, (bool, int, float, str)):
        return state, {}
    raise TypeError(f"{name} is a {type(state).__name__}, which a checkpoint cannot hold")


def join_tensors(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of split_tensors, apart from keys and tuples. Raises KeyError for a missing tensor."""
    if isinstance(plain, dict):
        if set(plain) == {_TENSOR}:
            return tensors[plain[_TENSOR]]
        return {key: join_tensors(value, tensors) for key, value in plain.items()}
    return [join_tensors(value, tensors) for value in plain] if isinstance(plain, list) else plain


def _united(dicts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: tensor for tensors in dicts for name, tensor in tensors.items()}
