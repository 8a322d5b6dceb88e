"""Both sides of a cell: the recipe's step by Distiller, and the plain program of its method.

Each has networks of its own; they begin with the same random weights and train on the same random images.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadaad.cli.benchmarks.grid import Cell
from fastadaad.config import Precision, PrecisionConfig
from fastadaad.run_config import RunConfig
from fastadaad.runtime.precision import DTYPES, is_low, tensor_cores
from fastadaad.training.build import distiller_of, training_layout
from fastadaad.training.distiller import Distiller
from fastadaad.training.optimizers import make_optimizer
from fastadaad.training.plain_program import REFERENCES, reference_step
from fastadaad.training.synthetic import LEARNING_RATE, images_of, random_networks


@dataclass(frozen=True, kw_only=True)
class Program:
    """One side of a cell."""

    student: nn.Module
    step: Callable[[], Tensor]
    """Trains the student on the batch, and returns the loss."""
    distiller: Distiller | None = None
    """Training step; None for the plain program."""


def fast_program(config: RunConfig, cell: Cell, device: torch.device, rate: float = LEARNING_RATE) -> Program:
    """Builds the recipe's training step as a Trainer does.

    Args:
        config: Settings by grid.comparable().
        cell: Batch size, precision, teacher policy and mode.
        device: Device of the step.
        rate: Learning rate.
    """
    config = replace(config, precision=PrecisionConfig.parse(cell.precision), mode=cell.mode)
    if config.teacher is not None:
        config = replace(config, teacher=replace(config.teacher, policy=cell.policy))
    (student, teacher), (x_natural, labels) = _random(config, cell, device)
    layout = training_layout(config, device)
    student, x_natural = student.to(memory_format=layout), x_natural.to(memory_format=layout)
    optimizer = make_optimizer(student, replace(config.optim, learning_rate=rate))
    distiller = distiller_of(config, student, teacher, optimizer)
    return Program(student=student, step=lambda: distiller.step(x_natural, labels).loss, distiller=distiller)


def plain_program(config: RunConfig, cell: Cell, device: torch.device, rate: float = LEARNING_RATE) -> Program:
    """Builds the plain program, which is uncompiled and queries the teacher in every step, in the cell's precision.

    Args:
        config: Settings by grid.comparable().
        cell: Batch size and precision; the rest plays no part.
        device: Device of the step.
        rate: Learning rate.
    """
    (student, teacher), (x_natural, labels) = _random(config, cell, device)
    optim, reference = config.optim, REFERENCES[config.method]
    optimizer = torch.optim.SGD(
        student.parameters(),
        lr=rate,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )
    # Methods without a teacher call none: any network will do.
    networks = student, teacher if teacher is not None else student

    def step() -> Tensor:
        with arithmetic(cell.precision, device):
            return reference_step(reference, *networks, optimizer, x_natural, labels, inner=config.inner)

    return Program(student=student, step=step)


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Lets a plain program compute in a precision: fp32 and TF32 by torch's switches, bf16 by autocast."""
    low = torch.autocast(device.type, dtype=DTYPES[precision]) if is_low(precision) else nullcontext()
    with tensor_cores(PrecisionConfig.parse(precision), device), low:
        yield


def _random(
    config: RunConfig, cell: Cell, device: torch.device
) -> tuple[tuple[nn.Module, nn.Module | None], tuple[Tensor, Tensor]]:
    """Returns networks and batch, the same ones in each call."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return random_networks(config, device), images_of(config).batch(cell.batch_size, device)
