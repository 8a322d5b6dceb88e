"""Builds what a run's configuration names: device, mode, networks and training step."""

import logging
import textwrap
from typing import cast

import torch
from torch import nn

from fastadaad import methods
from fastadaad.config import Mode
from fastadaad.data.dataset import image_shape
from fastadaad.inner.compile_choice import forward_flops, is_worth_compiling
from fastadaad.inner.maximizer import resolve_mode
from fastadaad.models import load_model
from fastadaad.models.mixed_teacher import MixedTeacher
from fastadaad.models.recognition import recognize
from fastadaad.models.shipped import checkpoint_path
from fastadaad.models.weights_reading import read_state_dict
from fastadaad.run_config import ModelConfig, RunConfig, TeacherConfig
from fastadaad.runtime.compile import preset_options
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.precision import resolved
from fastadaad.training.averaging import AveragedWeights
from fastadaad.training.data import TrainingData
from fastadaad.training.distiller import Distiller
from fastadaad.training.self_check import ensure_checked

# Weight of the second teacher's probabilities: 0.25 beside 0.5 in AKD2's program.
DEFAULT_BESIDE_WEIGHT = 1 / 3

log = logging.getLogger(__name__)


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
        other = "cuda" if name == "gpu" else "cpu"
        reason = textwrap.shorten(str(error).splitlines()[0], 80, placeholder=" ...")  # torch lists all kinds
        raise ValueError(f"device {name!r} cannot be used ({reason}): try device={other}") from error


def checked_mode(mode: Mode, device: torch.device) -> Mode:
    """Returns the mode that the self-check of this machine allows, running the self-check if necessary.

    `auto` is graph if captured steps passed, otherwise as in resolve_mode(), whose ValueErrors it raises.
    """
    resolved = resolve_mode(mode, device.type)
    result = ensure_checked(device)
    if mode == "auto" and result.status("captured") == "passed":
        resolved = "graph"
    return cast(Mode, result.usable_mode(resolved))


def mode_of_run(
    config: RunConfig, data: TrainingData, student: nn.Module, teacher: nn.Module | None, device: torch.device
) -> Mode:
    """Returns the mode of a run: on a CPU, `auto` compiles a run that is long enough to gain by it.

    The length is counted in FLOPs, so the ranks decide alike, and a resumed run keeps the mode that it began with.
    Deterministic runs stay eager.

    Args:
        config: Configuration of the run.
        data: Data of the run.
        student: The student.
        teacher: The teacher, or None.
        device: Device of the run.
    """
    if config.mode == "auto" and not config.inner.student_eval:
        return checked_mode("eager", device)  # no compiled step updates batch-norm in the search
    mode = checked_mode(config.mode, device)
    if config.mode != "auto" or device.type != "cpu" or config.deterministic:
        return mode
    networks = [network for network in (student, teacher) if network is not None]
    height, width = image_shape(data.train.images)[:2]
    image = torch.zeros(1, data.num_channels, height, width, device=device)
    flops = [forward_flops(network, image) for network in networks]
    through = flops if config.method_row.through_teacher else flops[:1]
    # A pixel gradient costs as much as a forward pass, and a training pass three times as much.
    per_image = 2 * config.inner.num_steps * sum(through) + 3 * flops[0] + sum(flops[1:])
    num_images = config.optim.epochs * len(data.train) * config.data.batch_size
    if not is_worth_compiling(num_images * per_image, networks, device):
        return mode
    log.info("the run is long enough to gain by compiling")
    return checked_mode("compiled", device)


def build_model(config: ModelConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """Builds the network of `config` for the classes and channels of `data`, on `device`."""
    mean, std = data.statistics if config.normalize else (0.0, 1.0)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    model = load_model(
        config.name,
        num_classes=data.num_classes,
        checkpoint=config.checkpoint,
        in_channels=data.num_channels,
        mean=mean,
        std=std,
        prefix=config.prefix,
    )
    return model.to(device)


def training_layout(config: RunConfig, device: torch.device) -> torch.memory_format:
    """Returns the memory layout of the student and of the images that it trains on.

    It is channels-last where the training pass runs on tensor cores, whose convolutions are channels-last: contiguous
    ones convert before and after each of them.
    """
    folds = config.fold and config.inner.student_eval
    precision = resolved(config.precision, device, student_folds=folds, teacher_folds=config.fold)
    on_tensor_cores = device.type == "cuda" and precision.student != "fp32"
    return torch.channels_last if on_tensor_cores else torch.contiguous_format


def build_student(config: RunConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """Builds the student before its first update; its initial weights are a function of the seed."""
    # Only the initial weights come from torch's global generator, and only inside this block.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        student = build_model(config.student, data, device)
    return student.to(memory_format=training_layout(config, device))


def build_teacher(
    config: TeacherConfig, data: TrainingData, device: torch.device, method: methods.Method | None = None
) -> nn.Module:
    """Builds the teacher as build_model does, or the mixture of two for the temperature of `method`.

    Raises:
        ValueError: `config` names no weights, or the second teacher's network is not recognised.
    """
    if config.checkpoint is None:
        raise ValueError(f"teacher {config.name} has no weights: set teacher.checkpoint=FILE")
    teacher = build_model(config, data, device)
    if config.beside is None:
        return teacher
    networks = recognize(read_state_dict(checkpoint_path(config.beside)))
    if not networks:
        raise ValueError(
            f"teacher.beside={config.beside} holds no network that fastadaad builds: see fastadaad inspect"
        )
    second = build_model(ModelConfig(name=networks[0].name, checkpoint=config.beside), data, device)
    has_temperature = method is not None and "temperature" in method.reads
    temperature = method.options.temperature if method is not None and has_temperature else 1.0
    weight = DEFAULT_BESIDE_WEIGHT if config.beside_weight is None else config.beside_weight
    return MixedTeacher(teacher, second, weight=weight, temperature=temperature).to(device)


def distiller_of(
    config: RunConfig,
    student: nn.Module,
    teacher: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    process_group: ProcessGroup | None = None,
    averaged: AveragedWeights | None = None,
) -> Distiller:
    """Builds the training step of `config`.

    Args:
        config: Settings of the run.
        student: Network to train.
        teacher: Teacher, or None for a method without one.
        optimizer: Optimizer of the student.
        process_group: Ranks that train together. Default: this process alone.
        averaged: Running average of the student, by EMA or SWA.
    """
    if config.compile_preset != "default" and config.mode == "eager":
        log.warning(f"compile_preset {config.compile_preset} changes nothing: the run is eager, set mode=compiled")
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
        compile_options=None if config.mode == "eager" else preset_options(config.compile_preset),
        awp_gamma=config.optim.awp_gamma,
        awp_begin=config.optim.awp_begin,
        awp_form=config.optim.awp_form,
        micro_batch=config.optim.micro_batch,
        grad_clip=config.optim.grad_clip,
        on_nonfinite=config.on_nonfinite,
        process_group=process_group,
        batch_norm=config.batch_norm,
        averaged=averaged if config.optim.ema_decay else None,
    )
