"""Trainings in forks of a process that has imported everything, as new interpreters would take seconds to start."""

from pathlib import Path

from bench.faults_run import WORDS
from fastadaad.cli import main
from fastadaad.training import checkpoint as run_checkpoint
from fastadaad.training import resume
from fastadaad.training.state import TrainingState


def train(folder: Path) -> int:
    """Runs the training of bench.faults_run in `folder`."""
    return main(["train", *WORDS, "--run-folder", str(folder), "--resume"])


def train_without_momentum(folder: Path) -> int:
    """Program that loses the optimizer's state when it resumes."""
    load = TrainingState.load_state_dict

    def load_the_rest(self: TrainingState, state: dict) -> None:
        load(self, {**state, "optimizer": {**state["optimizer"], "state": {}}})

    TrainingState.load_state_dict = load_the_rest  # type: ignore[method-assign]
    return train(folder)


def train_from_the_checkpoint_before(folder: Path) -> int:
    """Program that resumes from the checkpoint before the last."""

    def before_last(run_folder: Path) -> run_checkpoint.RunCheckpoint | None:
        paths = run_checkpoint.checkpoint_paths(run_folder)
        return run_checkpoint.read_checkpoint(paths[-1]) if paths else None

    resume.last_checkpoint = before_last
    return train(folder)


def train_without_resuming(folder: Path) -> int:
    """Program that cannot resume."""
    return 2 if run_checkpoint.checkpoint_paths(folder) else train(folder)
