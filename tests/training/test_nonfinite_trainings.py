"""NaN and inf in a whole training: it stops with the last good checkpoint, or skips the update and continues."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_runs import save_teacher, tiny_run

from fastadaad import NonFiniteError
from fastadaad.training.checkpoint import checkpoint_paths, read_checkpoint
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

POISONED_STEP = 5  # counted from 1, of eight


def trainer(folder: Path, *, resume: bool = False, **changes) -> Trainer:
    config = tiny_run(**{"checkpoint_every": 1} | changes)
    return Trainer(config, folder, Console(file=io.StringIO(), width=300), resume=resume)


def poison(run: Trainer) -> None:
    """Makes one pixel of a step's images NaN."""
    take_step = run.distiller.step

    def step(x_natural, *arguments, **options):
        if run.state.step == POISONED_STEP - 1:
            x_natural = x_natural.clone()
            x_natural[3, 0, 4, 4] = math.nan
        return take_step(x_natural, *arguments, **options)

    run.distiller.step = step


@pytest.mark.parametrize("log_every", [1, 2, 3, 100])
def test_a_training_stops_within_log_every_steps_and_no_checkpoint_is_spoiled(tmp_path, log_every):
    run = trainer(tmp_path, log_every=log_every, checkpoint_every=100)
    poison(run)
    with pytest.raises(
        NonFiniteError, match=r"^step 5: NaN or inf in x_natural: .*; last checkpoint before it: "
    ) as error:
        run.train()
    detected_at = {1: 5, 2: 6, 3: 6, 100: 8}  # at the latest before the checkpoint at the end of the epoch
    assert run.state.step == detected_at[log_every]
    assert "\n" not in str(error.value)
    (last,) = checkpoint_paths(tmp_path)
    assert str(last) in str(error.value)
    kept = read_checkpoint(last).state["training"]
    assert kept["step"] == 4
    assert all(tensor.isfinite().all() for tensor in kept["student"].values())


def test_a_run_that_stopped_resumes_with_skip_and_counts_skipped_updates(tmp_path):
    run = trainer(tmp_path)
    poison(run)
    with pytest.raises(NonFiniteError):
        run.train()
    run = trainer(tmp_path, resume=True, on_nonfinite="skip")
    assert run.state.step == POISONED_STEP - 1
    poison(run)
    run.train()
    rows = read_metrics(tmp_path)
    assert [row.get("skipped_updates") for row in rows] == [None, 1]
    assert rows[1]["train_loss"] == pytest.approx(rows[0]["train_loss"], rel=0.5)  # mean of the finite steps
    assert all(tensor.isfinite().all() for tensor in run.state.student.state_dict().values())
    assert "updates skipped, as NaN or inf was in their loss or gradients: 1" in run.console.file.getvalue()


def test_a_teacher_that_returns_nan_is_refused_before_the_training(tmp_path):
    teacher = save_teacher(tmp_path / "teacher.safetensors")
    run = trainer(tmp_path / "run", method="adaad", teacher=teacher)
    with torch.no_grad():
        next(run.distiller.teacher.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="teacher cnn-6-s1"):
        run.train()
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_settings_are_checked():
    with pytest.raises(ValueError, match="on_nonfinite is 'ignore': choose stop or skip"):
        replace(tiny_run(), on_nonfinite="ignore")
