"""Short runs that stop at a step, and the comparison of resumed runs."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny_runs import save_teacher, tiny_run

from fastadaad.config import TeacherPolicy
from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

NUM_STEPS = 12  # three epochs of four


class StopHereError(Exception):
    """Ends a run; its files are those of a killed process."""


def long_run(**changes) -> RunConfig:
    """Three epochs with momentum, an average and a checkpoint at each step."""
    optim = OptimConfig(epochs=3, learning_rate=0.2, schedule="one-cycle", warmup=0.25, nesterov=True, ema_decay=0.9)
    return tiny_run(**{"optim": optim, "deterministic": True, "checkpoint_every": 1} | changes)


def trainer(config: RunConfig, folder: Path, *, resume: bool = False) -> Trainer:
    return Trainer(config, folder, Console(file=io.StringIO(), width=200), resume=resume)


def printed_by(run: Trainer) -> str:
    return run.console.file.getvalue()


def before_step(run: Trainer, step: int, act: Callable[[], None]) -> None:
    """Calls `act` before optimiser step `step` of the run, counted from 0."""
    take_step = run.distiller.step

    def step_after_act(*arguments, **options):
        if run.state.step == step:
            act()
        return take_step(*arguments, **options)

    run.distiller.step = step_after_act


def die() -> None:
    raise StopHereError


def full_disk(*arguments: object) -> None:
    """Replacement of os.fsync on a full disk."""
    raise OSError(28, "No space left on device")


def run_until(config: RunConfig, folder: Path, step: int) -> None:
    """Trains until `step`, then dies."""
    run = trainer(config, folder)
    before_step(run, step, die)
    with pytest.raises(StopHereError):
        run.train()


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("last.safetensors", "best.safetensors")}


UNTIMED = ("epoch", "step", "learning_rate", "train_loss", "natural_accuracy", "robust_accuracy")


def untimed_rows(folder: Path) -> list[list[float]]:
    return [[row[name] for name in UNTIMED] for row in read_metrics(folder)]


VARIANTS = {
    "ema": {},
    "swa": {"optim": OptimConfig(epochs=3, learning_rate=0.2, swa_begin=0.3)},
    "lamb": {"optim": OptimConfig(epochs=3, optimizer="lamb", learning_rate=0.01)},
    "adamw": {"optim": OptimConfig(epochs=3, optimizer="adamw", learning_rate=0.01, grad_clip=0.5)},
    "lars": {"optim": OptimConfig(epochs=3, optimizer="lars", learning_rate=1.0, awp_gamma=0.005, awp_begin=1)},
    "mixed": {"method": "trades", "mixing": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1}},
    "adaad": {"method": "adaad"},
    "adaptive": {"method": "adaad", "policy": TeacherPolicy(kind="refreshed")},
    "adaiad": {"method": "adaiad", "method_options": {"introspection_begin": 1}},
}


def variant(name: str, folder: Path) -> RunConfig:
    changes = dict(VARIANTS[name])
    policy, mixing = changes.pop("policy", TeacherPolicy()), changes.pop("mixing", None)
    if mixing is not None:
        changes["data"] = replace(long_run().data, **mixing)
    elif "method" in changes:
        changes["teacher"] = replace(save_teacher(folder / "teacher.safetensors"), policy=policy)
    return long_run(**changes)
