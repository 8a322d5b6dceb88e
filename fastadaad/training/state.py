"""State of a run: everything that changes during the training, and its form in a checkpoint."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training.averaging import AveragedWeights
from fastadaad.training.optimizers import make_optimizer

# Attributes of a TrainingState that are numbers or lists of numbers.
NUMBERS = ("epoch", "step", "best_epoch", "best_robust_accuracy", "rows")


@dataclass(kw_only=True)
class TrainingState:
    """The student and everything else that its further training depends on, except for the Distiller's state."""

    student: nn.Module
    averaged: AveragedWeights | None
    """Average of the student's weights, by EMA or SWA."""
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Random numbers of the starts of the inner loop."""
    losses: Tensor
    """Sum and number of this epoch's losses so far, fp32 [2] on the device."""
    epoch: int = 0
    """Number of epochs whose steps are complete."""
    step: int = 0
    """Number of optimiser steps; the position in the data is step - epoch * steps per epoch."""
    rows: list[dict[str, float | None]] = field(default_factory=list)
    """Rows of metrics.csv, one per finished epoch."""
    best_epoch: int = 0
    best_robust_accuracy: float = -1.0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and saved: the averaged student as soon as there is one."""
        if self.averaged is None or self.averaged.num_averaged == 0:
            return self.student
        return self.averaged.module

    def add_loss(self, loss: Tensor) -> None:
        """Adds the loss of a step; a non-finite one, whose update was skipped, does not count."""
        one = torch.stack([loss, torch.ones_like(loss)])
        self.losses += torch.where(loss.isfinite(), one, torch.zeros_like(one))

    def mean_loss(self) -> float:
        """Mean loss of the steps of this epoch so far. Waits for the device."""
        return (self.losses[0] / self.losses[1]).item()

    def average_after_epoch(self, optim: OptimConfig) -> None:
        """Adds the student to its SWA average, from the epoch in which it begins."""
        if optim.swa_begin is not None and self.epoch > optim.swa_begin * optim.epochs:
            assert self.averaged is not None
            self.averaged.add(self.student)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as nested dicts and lists of tensors, numbers and None."""
        return {
            "student": self.student.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state_dict(), in which strings may have replaced numbers as keys of dicts."""
        self.student.load_state_dict(state["student"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        optimizer = state["optimizer"]
        by_number = {int(number): values for number, values in optimizer["state"].items()}
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict({**optimizer, "state": by_number})
        for group, decay in zip(self.optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay  # a setting of the run, which may have changed since
        self.generator.set_state(state["generator"])
        self.losses.copy_(state["losses"])
        for name in NUMBERS:
            setattr(self, name, state[name])


def initial_state(config: RunConfig, student: nn.Module, device: torch.device) -> TrainingState:
    """Returns the state of a run of `config` before its first step."""
    return TrainingState(
        student=student,
        averaged=_averaged(student, config.optim),
        optimizer=make_optimizer(student, config.optim),
        generator=torch.Generator(device).manual_seed(config.seed),
        losses=torch.zeros(2, device=device),
    )


def _averaged(student: nn.Module, optim: OptimConfig) -> AveragedWeights | None:
    """Returns the running average that `optim` selects."""
    if not optim.ema_decay and optim.swa_begin is None:
        return None
    return AveragedWeights(student, optim.ema_decay or None)
