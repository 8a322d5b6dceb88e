"""Runs of a second on the embedded digits, and weights for their teacher."""

import io
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastadaad import load_model
from fastadaad.config import InnerConfig, ThreatModel
from fastadaad.models.weights_writing import save_weights
from fastadaad.run_config import DataConfig, EvaluationConfig, ModelConfig, OptimConfig, RunConfig, TeacherConfig
from fastadaad.training.trainer import Trainer

THREAT_MODEL = ThreatModel(epsilon=0.1)


def tiny_run(**changes) -> RunConfig:
    """Two epochs of PGD-AT on 256 digits: 4 steps each."""
    config = RunConfig(
        recipe="tiny",
        method="pgd-at",
        data=DataConfig(name="digits", num_samples=256, validation_size=100, batch_size=64, padding=1),
        student=ModelConfig(name="cnn-4-s1", normalize=True),
        inner=InnerConfig(threat_model=THREAT_MODEL, step_size=0.05, num_steps=2),
        optim=OptimConfig(epochs=2, learning_rate=0.2, schedule="one-cycle", warmup=0.25),
        evaluation=EvaluationConfig(
            threat_model=THREAT_MODEL, attacks=("natural", "pgd2"), validation_attack="pgd2", num_images=150
        ),
        log_every=3,
        teacher_check=0,  # the teacher of save_teacher is untrained
    )
    return replace(config, **changes)


def save_teacher(path: Path, seed: int = 0) -> TeacherConfig:
    """Writes untrained weights, drawn with `seed`, and returns their configuration as a teacher."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_weights(path, load_model("cnn-6-s1", in_channels=1))
    return TeacherConfig(name="cnn-6-s1", checkpoint=str(path))


def gpu_run(folder: Path, **changes) -> RunConfig:
    """tiny_run of AdaAD on a CUDA device, with its teacher in `folder`.

    It has a quarter of the images, in as many steps: the pretend GPU interprets the kernels, one image at a time.
    """
    config = tiny_run(method="adaad", teacher=save_teacher(folder / "teacher.safetensors"), device="cuda")
    data = replace(config.data, num_samples=64, validation_size=24, batch_size=16)
    return replace(config, data=data, evaluation=replace(config.evaluation, num_images=24), **changes)


def printed_lines(config: RunConfig, folder: Path, **options) -> list[str]:
    """Trains and returns the printed lines; `options` are the Trainer's."""
    console = Console(file=io.StringIO(), width=300)
    Trainer(config, folder, console, **options).train()
    return console.file.getvalue().splitlines()
