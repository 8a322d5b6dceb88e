"""Resumed runs, NaN, and two ranks on CUDA devices."""

import io
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_runs import gpu_run

from fastadaad import NonFiniteError
from fastadaad.config import PrecisionConfig
from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training.trainer import Trainer

NUM_GPUS = 2 if "PRETEND_GPU" in os.environ else torch.cuda.device_count()
SCRIPT = Path(__file__).parents[1] / "several_processes.py"


def config_on_gpu(folder: Path, mode: str, **changes) -> RunConfig:
    optim = OptimConfig(epochs=2, learning_rate=0.05, ema_decay=0.9)
    precision = PrecisionConfig.parse("fp32")  # so that two runs agree closely
    return gpu_run(folder, optim=optim, mode=mode, checkpoint_every=1, precision=precision, **changes)


def trainer(config: RunConfig, folder: Path, *, resume: bool = False) -> Trainer:
    return Trainer(config, folder, Console(file=io.StringIO(), width=200), resume=resume)


def before_step(run: Trainer, step: int, act) -> None:
    """Replaces x_natural of one step by act(x_natural)."""
    take_step = run.distiller.step

    def step_after_act(x_natural, *arguments, **options):
        if run.state.step == step:
            x_natural = act(x_natural)
        return take_step(x_natural, *arguments, **options)

    run.distiller.step = step_after_act


@pytest.mark.parametrize("mode", ["eager", "compiled", "graph"])
def test_a_stopped_run_resumes(tmp_path, mode):
    config = config_on_gpu(tmp_path, mode)
    whole = trainer(config, tmp_path / "whole")
    whole.train()

    def die(x_natural):
        raise KeyboardInterrupt

    run = trainer(config, tmp_path / "stopped")
    before_step(run, 5, die)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    resumed = trainer(config, tmp_path / "stopped", resume=True)
    assert resumed.state.step == 5
    resumed.train()
    for name, tensor in whole.state.student.state_dict().items():
        torch.testing.assert_close(resumed.state.student.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["eager", "compiled", "graph"])
@pytest.mark.parametrize("on_nonfinite", ["stop", "skip"])
def test_nan_stops_the_run_or_its_update_is_skipped(tmp_path, mode, on_nonfinite):
    run = trainer(config_on_gpu(tmp_path, mode, on_nonfinite=on_nonfinite), tmp_path / "run")
    before_step(run, 5, lambda x_natural: torch.full_like(x_natural, torch.nan))
    if on_nonfinite == "stop":
        with pytest.raises(NonFiniteError, match="step 6: NaN or inf in x_natural"):
            run.train()
    else:
        run.train()
        assert run.state.rows[-1]["skipped_updates"] == 1
        assert all(tensor.isfinite().all() for tensor in run.state.student.state_dict().values())


@pytest.mark.skipif(NUM_GPUS < 2, reason="two GPUs are needed")
@pytest.mark.parametrize("batch_norm", ["sync", pytest.param("local", marks=pytest.mark.real_gpu("half a minute"))])
def test_two_gpus_train_one_student(tmp_path, batch_norm):
    """The ranks communicate by NCCL, on two pretend GPUs by gloo."""
    config = replace(config_on_gpu(tmp_path, "eager"), batch_norm=batch_norm)
    (tmp_path / "run.json").write_text(json.dumps(asdict(config)))
    (tmp_path / "tasks.json").write_text(json.dumps([{"name": "run"}]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", SCRIPT, tmp_path]
    subprocess.run(command, env=os.environ | {"DEVICE": "cuda", "PRETEND_GPU_COUNT": "2"}, check=True, timeout=300)
    students = [torch.load(tmp_path / f"run-rank{rank}.pt", map_location="cpu") for rank in (0, 1)]
    assert all(torch.equal(tensor, students[1][name]) for name, tensor in students[0].items())
    if batch_norm == "sync":
        alone = trainer(config, tmp_path / "alone")
        alone.train()
        for name, tensor in alone.state.student.state_dict().items():
            torch.testing.assert_close(students[0][name], tensor.cpu(), rtol=1e-2, atol=1e-3)
