"""Moments of a run at which one of its processes is killed.

They are drawn before, found in what the files of the run show, and named by what the files show after the kill: a
temporary file that was left proves that the kill came while it was being written.
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

# Of the time of a whole run: within it the moments are drawn, so that a run meets several.
WINDOW_SHARE = 0.25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run goes where nothing happens to it."""

    steps_per_epoch: int
    num_steps: int
    start_s: float
    """Until the first step."""
    training_s: float

    @classmethod
    def of(cls, folder: Path, started_at: float) -> "Plan":
        """Of the run in `folder`, which has ended; `started_at` in seconds since 1970."""
        steps = [int(row["step"]) for row in untimed_rows(folder / "metrics.csv")]
        begun_at = (folder / "config.json").stat().st_mtime
        return cls(
            steps_per_epoch=steps[0],
            num_steps=steps[-1],
            start_s=begun_at - started_at,
            training_s=_saved_at(folder)[0] - begun_at,
        )


def is_saving(folder: Path) -> bool:
    return any((folder / CHECKPOINTS).glob("*.tmp")) or is_tidying(folder)


def is_tidying(folder: Path) -> bool:
    """Between the renaming of a checkpoint and the deletion of the oldest."""
    return len(checkpoint_paths(folder)) > NUM_KEPT


def is_writing(folder: Path) -> bool:
    return any(folder.glob("*.tmp"))


def is_near_validation(folder: Path, plan: Plan) -> bool:
    """After the last step of an epoch, or in it: that one is saved when the epoch has been measured."""
    return _newest_step(folder) % plan.steps_per_epoch == plan.steps_per_epoch - 1


def is_evaluating(folder: Path, plan: Plan) -> bool:
    """The training has ended and its weights are written."""
    newest, last = next(iter(checkpoint_paths(folder)), None), folder / "last.safetensors"
    if newest is None or step_of(newest) != plan.num_steps or not last.exists():
        return False
    return last.stat().st_mtime_ns >= newest.stat().st_mtime_ns


def _newest_step(folder: Path) -> int:
    return max(map(step_of, checkpoint_paths(folder)), default=0)


def moment_of(process: Process, plan: Plan, now: float) -> str:
    """What the process does, or was doing when it was killed at `now`, in seconds since 1970.

    What the files do not show counts as training, such as the work between two of them.
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
    """When the checkpoints were saved, the latest first."""
    saved_at = []
    for path in checkpoint_paths(folder):
        with suppress(FileNotFoundError):  # a running process may have deleted it
            saved_at.append(path.stat().st_mtime)
    return saved_at


def _step_s(folder: Path) -> float:
    """Of the latest step that was saved; infinite where that is not known."""
    saved_at = _saved_at(folder)
    return saved_at[0] - saved_at[1] if len(saved_at) > 1 else float("inf")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is waited for, from a random moment of the training on; the kill comes up to `then_s` later."""

    condition: Callable[[Path, Plan], bool]
    then_s: float = 0.0


ANY = Aim(condition=lambda folder, plan: True)
WHILE_SAVING = Aim(condition=lambda folder, plan: is_saving(folder))
WHILE_TIDYING = Aim(condition=lambda folder, plan: is_tidying(folder))
WHILE_WRITING = Aim(condition=lambda folder, plan: is_writing(folder))
WHILE_VALIDATING = Aim(condition=is_near_validation, then_s=0.3)
WHILE_EVALUATING = Aim(condition=is_evaluating, then_s=0.3)
BEFORE_THE_FIRST_STEP = None

# A third of the kills come at any moment, a third while a checkpoint is being saved.
AIMS = (
    ANY, WHILE_SAVING, WHILE_WRITING,
    ANY, WHILE_SAVING, WHILE_VALIDATING,
    ANY, WHILE_TIDYING, BEFORE_THE_FIRST_STEP,
    ANY, WHILE_SAVING, WHILE_EVALUATING,
)  # fmt: skip


def kills(count: int, number: signal.Signals, plan: Plan, seed: int) -> list[Fault]:
    """So many, with the aims in turn, at moments drawn with `seed`.

    With SIGKILL a process has no chance to do anything; with another signal it is asked to stop, and should save and
    end with 128 plus the signal's number, or by the signal itself where Python still loads the program.
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
    """Waits, so long after the first step and so long after the aim; whether the process still runs then."""
    return (
        process.wait_for(process.has_begun)
        and process.wait(draws.uniform(0, WINDOW_SHARE * plan.training_s))
        and process.wait_for(partial(aim.condition, process.folder, plan))
        and process.wait(draws.uniform(0, aim.then_s))
    )


def _kill(reached: Callable[[Process], bool], number: signal.Signals, plan: Plan, process: Process) -> str | None:
    """Send the signal; the name of the moment."""
    if not reached(process):
        return None
    now = time.time()
    before = moment_of(process, plan, now) if number != signal.SIGKILL else None
    process.child.send_signal(number)
    code = process.exit_code()
    if code == 0 and f"{number.name}: finishing" not in process.printed():
        return None  # it came too late
    return before or moment_of(process, plan, now)
