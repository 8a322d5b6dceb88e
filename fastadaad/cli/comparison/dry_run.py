"""Plan of a comparison: its students with hours and memory, computed from data sheets, not measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fastadaad.cli.comparison.experiment import Experiment
from fastadaad.config import Precision, TeacherPolicy
from fastadaad.inner.compile_choice import forward_flops
from fastadaad.models import load_model
from fastadaad.models.shipped import checkpoint_path
from fastadaad.run_config import RunConfig
from fastadaad.runtime.peak_rates import peak_tflops
from fastadaad.runtime.text import print_line
from fastadaad.training.checkpoint import checkpoint_paths
from fastadaad.training.synthetic import IMAGES

CARDS = ("A100", "H100")


@dataclass(frozen=True, kw_only=True)
class Network:
    """Forward FLOPs of one image, and number of parameters."""

    flops: int
    parameters: int


@cache
def network(name: str, data: str) -> Network:
    """Counts a network on the meta device, which holds no values."""
    images = IMAGES[data]
    with torch.device("meta"):
        model = load_model(name, images.num_classes, in_channels=images.channels)
        flops = forward_flops(model, torch.empty(1, images.channels, images.size, images.size))
    return Network(flops=flops, parameters=sum(parameter.numel() for parameter in model.parameters()))


def teacher_passes(policy: TeacherPolicy, num_steps: int) -> int:
    """Passes of the teacher in the inner loop, backward passes included; an adaptive policy counts at its best."""
    if policy.kind == "exact":
        return 2 * num_steps
    forwards = math.ceil(num_steps / (policy.every or num_steps))
    return forwards * (1 + (policy.top if policy.kind == "linearized" else 1))


def least_hours(config: RunConfig, card: str) -> float | None:
    """Hours of a training whose convolutions and linear layers run at the card's peak rate, without evaluation.

    Passes for batch-norm's statistics alone are left out. None: the size of the data set is not known.
    """
    rates = peak_tflops(card)
    if config.data.name not in IMAGES or rates is None:
        return None
    steps = config.inner.num_steps
    student = network(config.student.name, config.data.name)
    seconds = (2 * steps + 3) * student.flops / _rate(rates, config.precision.student)
    if config.method_row.needs_teacher and config.teacher is not None:
        through = teacher_passes(config.teacher.policy, steps) if config.method_row.through_teacher else 0
        teacher = network(config.teacher.name, config.data.name)
        seconds += (through + 1) * teacher.flops / _rate(rates, config.precision.teacher)
    all_but_validation = IMAGES[config.data.name].num_images - config.data.validation_size
    num_images = min(config.data.num_samples or all_but_validation, all_but_validation)
    return config.optim.epochs * num_images * seconds / 3600


def _rate(rates: dict[Precision, float], precision: Precision) -> float:
    """FLOP/s; auto is bf16 on these cards."""
    return 1e12 * rates["bf16" if precision == "auto" else precision]


def least_gib(config: RunConfig) -> float | None:
    """GiB of weights, gradients and momentum in fp32, and of the data set as uint8; None: its size is not known."""
    if config.data.name not in IMAGES:
        return None
    images = IMAGES[config.data.name]
    numbers = 3 * network(config.student.name, config.data.name).parameters
    if config.method_row.needs_teacher and config.teacher is not None:
        numbers += network(config.teacher.name, config.data.name).parameters
    return (4 * numbers + images.num_bytes) / 2**30


def missing_teacher(config: RunConfig) -> str | None:
    """Returns the file of the teacher of a student, if it needs one and the file does not exist yet."""
    if not config.method_row.needs_teacher or config.teacher is None or config.teacher.checkpoint is None:
        return None
    path = checkpoint_path(config.teacher.checkpoint)
    return None if path.exists() else str(path)


def _state(config: RunConfig, folder: Path) -> str:
    if missing_teacher(config):
        return "to do"  # an experiment is recognised by the contents of its teacher
    experiment = Experiment(config, folder / "experiments", label=config.method)
    if experiment.is_finished:
        return "finished"
    if experiment.training is not None:
        return "trained"
    return "begun" if checkpoint_paths(experiment.folder) else "to do"


def print_plan(configs: Sequence[RunConfig], folder: Path, console: Console) -> None:
    """Prints the students of a comparison, with their state and the computed hours; writes nothing.

    Args:
        configs: Configurations of the students.
        folder: Folder of the results.
        console: Console for the table.
    """
    columns = ("student", "method", "seed", "state", *[f"{card}, hours" for card in CARDS], "memory, GiB")
    table = Table(title="Computed, not measured: hours at the card's peak FLOP/s, and at half")
    for column in columns:
        table.add_column(column, justify="left" if column in columns[:4] else "right")
    sums = dict.fromkeys(CARDS, 0.0)
    for config in configs:
        state = _state(config, folder)
        hours = {card: least_hours(config, card) for card in CARDS}
        gib = least_gib(config)
        if state in ("to do", "begun"):
            sums = {card: sums[card] + (hours[card] or 0.0) for card in CARDS}
        memory = "" if gib is None else f"> {gib:.1f}"
        table.add_row(config.student.name, config.method, str(config.seed), state, *map(_range, hours.values()), memory)
    table.add_section()
    table.add_row("not trained yet", "", "", "", *map(_range, sums.values()), "")
    console.print(table)
    for path in dict.fromkeys(filter(None, map(missing_teacher, configs))):
        print_line(console, f"The teacher's file {path} does not exist yet: its students count as to do.")
    console.print(
        "Left out: the bandwidth of the memory, which bounds small students such as mobilenet-v2 without a teacher in "
        "the inner loop; evaluation; the memory of activations, which fastadaad doctor --max-batch RECIPE measures. A "
        "training that has begun counts in full."
    )


def _range(hours: float | None) -> str:
    return "" if hours is None else f"{hours:.1f} to {2 * hours:.1f}"
