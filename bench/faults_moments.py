"""Moments of a run at which one of its processes is killed.

A moment is drawn beforehand, recognised by the files of the run, and named by the files after the kill: a temporary
file that is left proves that the kill came while the file was being written.
"""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastadaad.training.checkpoint import CHECKPOINTS, NUM_KEPT, checkpoint_paths

from .faults_run import Fault, Process, step_of, untimed_rows

STARTING = "starting"
TRAINING = "training"
SAVING = "saving a checkpoint"
VALIDATING = "validating"
WRITING = "writing weights or rows"
EVALUATING = "evaluating"

# Fraction of a run's time within which a moment is drawn, so that a run has several faults.
WINDOW_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Schedule of an undisturbed run."""

    steps_per_epoch: int
    num_steps: int
    start_s: float
    """Seconds from the start of the process to the first step."""
    training_s: float

    @classmethod
    def of(cls, folder: Path, started_at: float) -> "Plan":
        """Reads the schedule of the finished run in `folder`; `started_at` in seconds since 1970."""
        steps = [int(row["step"]) for row in untimed_rows(folder / "metrics.csv")]
        first_step_at = (folder / "config.json").stat().st_mtime
        return cls(
            steps_per_epoch=steps[0],
            num_steps=steps[-1],
            start_s=first_step_at - started_at,
            training_s=_saved_at(folder)[0] - first_step_at,
        )


def is_saving(folder: Path) -> bool:
    return any((folder / CHECKPOINTS).glob("*.tmp")) or is_tidying(folder)


def is_tidying(folder: Path) -> bool:
    """Returns True between the renaming of a checkpoint and the deletion of the oldest."""
    return len(checkpoint_paths(folder)) > NUM_KEPT


def is_writing(folder: Path) -> bool:
    return any(folder.glob("*.tmp"))


def is_near_validation(folder: Path, plan: Plan) -> bool:
    """Returns True during or after the last step of an epoch, which is saved after the validation."""
    return _newest_step(folder) % plan.steps_per_epoch == plan.steps_per_epoch - 1


def is_evaluating(folder: Path, plan: Plan) -> bool:
    """Returns True if the training has ended and its weights are written."""
    newest, last = next(iter(checkpoint_paths(folder)), None), folder / "last.safetensors"
    if newest is None or step_of(newest) != plan.num_steps or not last.exists():
        return False
    return last.stat().st_mtime_ns >= newest.stat().st_mtime_ns


def _newest_step(folder: Path) -> int:
    return max(map(step_of, checkpoint_paths(folder)), default=0)


def moment_of(process: Process, plan: Plan, now: float) -> str:
    """Returns what the process does, or was doing when it was killed at `now`, in seconds since 1970.

    Work that leaves no trace in the files counts as training.
    """
    folder = process.folder
    if not process.has_begun():
        return STARTING
    if is_saving(folder):
        return SAVING
    if is_writing(folder):
        return WRITING
    if is_evaluating(folder, plan):
        return EVALUATING
    if is_near_validation(folder, plan) and now - _saved_at(folder)[0] > _step_s(folder):
        return VALIDATING
    return TRAINING


def _saved_at(folder: Path) -> list[float]:
    """Times at which the checkpoints were saved, the latest first."""
    saved_at = []
    for path in checkpoint_paths(folder):
        with suppress(FileNotFoundError):  # may be deleted by a running process
            saved_at.append(path.stat().st_mtime)
    return saved_at


def _step_s(folder: Path) -> float:
    """Seconds of the latest saved step; infinite if unknown."""
    saved_at = _saved_at(folder)
    return saved_at[0] - saved_at[1] if len(saved_at) > 1 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Condition to wait for after a random moment of the training; the kill follows within `then_s` seconds."""

    condition: Callable[[Path, Plan], bool]
    then_s: float = 0.0


ANY = Aim(condition=lambda folder, plan: True)
WHILE_SAVING = Aim(condition=lambda folder, plan: is_saving(folder))
WHILE_TIDYING = Aim(condition=lambda folder, plan: is_tidying(folder))
WHILE_WRITING = Aim(condition=lambda folder, plan: is_writing(folder))
WHILE_VALIDATING = Aim(condition=is_near_validation, then_s=0.3)
WHILE_EVALUATING = Aim(condition=is_evaluating, then_s=0.3)
BEFORE_THE_FIRST_STEP = None

# A third of the kills come at a random moment, a third while a checkpoint is being saved.
AIMS = (
    ANY, WHILE_SAVING, WHILE_WRITING,
    ANY, WHILE_SAVING, WHILE_VALIDATING,
    ANY, WHILE_TIDYING, BEFORE_THE_FIRST_STEP,
    ANY, WHILE_SAVING, WHILE_EVALUATING,
)  # fmt: skip


def kills(count: int, number: signal.Signals, plan: Plan, seed: int) -> list[Fault]:
    """Returns `count` kills with the aims in turn, at moments drawn with `seed`.

    SIGKILL ends a process at once. Another signal requests a stop: the process should save and exit with 128 plus the
    signal's number, or be ended by the signal itself if Python is still loading the program.
    """
    exit_codes = (-number,) if number == signal.SIGKILL else (128 + number, -number)
    faults = []
    for index in range(count):
        aim, draws = AIMS[index % len(AIMS)], random.Random(f"{seed} {index}")
        if aim is None:
            reached = partial(_is_running_after, draws, plan.start_s)
        else:
            reached = partial(is_reached, aim, plan, draws)
        faults.append(Fault(strike=partial(_kill, reached, number, plan), exit_codes=exit_codes))
    return faults


def _is_running_after(draws: random.Random, seconds: float, process: Process) -> bool:
    return process.wait(draws.uniform(0, seconds))


def is_reached(aim: Aim, plan: Plan, draws: random.Random, process: Process) -> bool:
    """Waits for the first step, a random time, the aim's condition and again a random time.

    Returns True if the process still runs then.
    """
    return (
        process.wait_for(process.has_begun)
        and process.wait(draws.uniform(0, WINDOW_FRACTION * plan.training_s))
        and process.wait_for(partial(aim.condition, process.folder, plan))
        and process.wait(draws.uniform(0, aim.then_s))
    )


def _kill(reached: Callable[[Process], bool], number: signal.Signals, plan: Plan, process: Process) -> str | None:
    """Sends the signal and returns the name of the moment; None if the process had ended before."""
    if not reached(process):
        return None
    now = time.time()
    before = moment_of(process, plan, now) if number != signal.SIGKILL else None
    process.child.send_signal(number)
    code = process.exit_code()
    if code == 0 and f"{number.name}: finishing" not in process.printed():
        return None  # the signal came too late
    return before or moment_of(process, plan, now)
