"""Builds what a run's configuration names: device, mode, networks and training step."""

from typing import cast

import torch
from torch import nn

from fastadaad.config import Mode
from fastadaad.inner.maximizer import resolve_mode
from fastadaad.models import load_model
from fastadaad.models.shipped import checkpoint_path
from fastadaad.run_config import ModelConfig, RunConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.training.data import TrainingData
from fastadaad.training.distiller import Distiller
from fastadaad.training.self_check import ensure_checked


def resolve_device(name: str) -> torch.device:
    """Returns the device of this name; `auto` is the GPU if there is one, otherwise the CPU.

    Raises:
        ValueError: This build of torch cannot use the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        probe = torch.zeros(1, device=name)
        probe.item()  # a device such as meta holds no values
        return probe.device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try device=cpu") from error


def checked_mode(mode: Mode, device: torch.device) -> Mode:
    """Returns the mode that the self-check of this machine allows, running the self-check if necessary.

    `auto` is graph if captured steps passed, otherwise as in resolve_mode(), whose ValueErrors it raises.
    """
    resolved = resolve_mode(mode, device.type)
    result = ensure_checked(device)
    if mode == "auto" and result.status("captured") == "passed":
        resolved = "graph"
    return cast(Mode, result.usable_mode(resolved))


def build_model(config: ModelConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """Builds the network of `config` for the classes and channels of `data`, on `device`."""
    mean, std = data.statistics if config.normalize else (0.0, 1.0)
    model = load_model(
        config.name,
        num_classes=data.num_classes,
        checkpoint=None if config.checkpoint is None else checkpoint_path(config.checkpoint),
        in_channels=data.num_channels,
        mean=mean,
        std=std,
    )
    return model.to(device)


def build_student(config: RunConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """Builds the student before its first update; its initial weights are a function of the seed."""
    # Only the initial weights come from torch's global generator, and only inside this block.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_model(config.student, data, device)


def build_teacher(config: ModelConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """Builds the teacher as build_model does. Raises ValueError if `config` names no weights."""
    if config.checkpoint is None:
        raise ValueError(f"teacher {config.name} has no weights: set teacher.checkpoint=FILE")
    return build_model(config, data, device)


def distiller_of(
    config: RunConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    process_group: ProcessGroup | None = None,
) -> Distiller:
    """Builds the training step of `config`. Default of `process_group`: this process alone."""
    return Distiller(
        student,
        teacher,
        method=config.method_row,
        inner=config.inner,
        optimizer=optimizer,
        teacher_policy=None if teacher is None or config.teacher is None else config.teacher.policy,
        precision=config.precision,
        layout=config.layout,
        fold=config.fold,
        mode=config.mode,
        awp_gamma=config.optim.awp_gamma,
        awp_begin=config.optim.awp_begin,
        micro_batch=config.optim.micro_batch,
        on_nonfinite=config.on_nonfinite,
        process_group=process_group,
        batch_norm=config.batch_norm,
    )
