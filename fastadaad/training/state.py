"""All that changes while a run goes on, and the same as a checkpoint holds it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training.optimizers import make_optimizer

# What is a number of a TrainingState, or a list of such.
NUMBERS = ("epoch", "step", "best_epoch", "best_robust_accuracy", "rows")


@dataclass(kw_only=True)
class TrainingState:
    """The student and what its further training depends on, beside the state of the Distiller."""

    student: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Draws the starts of the inner loop."""
    losses: Tensor
    """Of the steps of this epoch so far: their sum and number, on the device."""
    epoch: int = 0
    """Epochs of steps that are complete."""
    step: int = 0
    """Optimiser steps so far; the position in the data is step - epoch * steps per epoch."""
    rows: list[dict[str, float | None]] = field(default_factory=list)
    """Of metrics.csv: one for each epoch that has been measured."""
    best_epoch: int = 0
    best_robust_accuracy: float = -1.0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and saved: the averaged student as soon as there is one."""
        if self.averaged is None or self.averaged.n_averaged == 0:
            return self.student
        return self.averaged.module

    def note_loss(self, loss: Tensor) -> None:
        """Add the loss of a step; one that is not finite, whose update was left out, does not count."""
        one = torch.stack([loss, torch.ones_like(loss)])
        self.losses += torch.where(loss.isfinite(), one, torch.zeros_like(one))

    def mean_loss(self) -> float:
        """Of the steps of this epoch so far. Waits for the device."""
        return (self.losses[0] / self.losses[1]).item()

    def state_dict(self) -> dict[str, Any]:
        """As nested_state.py has it."""
        return {
            "student": self.student.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses,
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, whose dicts may have texts as keys where they were numbers."""
        self.student.load_state_dict(state["student"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        optimizer = state["optimizer"]
        by_number = {int(number): values for number, values in optimizer["state"].items()}
        self.optimizer.load_state_dict({**optimizer, "state": by_number})
        self.generator.set_state(state["generator"])
        self.losses.copy_(state["losses"])
        for name in NUMBERS:
            setattr(self, name, state[name])


def initial_state(config: RunConfig, student: nn.Module, device: torch.device) -> TrainingState:
    """That of a run of `config` before its first step."""
    return TrainingState(
        student=student,
        averaged=_averaged(student, config.optim),
        optimizer=make_optimizer(student, config.optim),
        generator=torch.Generator(device).manual_seed(config.seed),
        losses=torch.zeros(2, device=device),
    )


def _averaged(student: nn.Module, optim: OptimConfig) -> AveragedModel | None:
    """The running average that `optim` asks for."""
    if not optim.ema_decay and optim.swa_begin is None:
        return None
    return AveragedModel(
        student,
        multi_avg_fn=get_ema_multi_avg_fn(optim.ema_decay) if optim.ema_decay else None,
        # torch's multi-tensor form of it fails at batch-norm's integer counters.
        avg_fn=None if optim.ema_decay else get_swa_avg_fn(),
        use_buffers=True,
    )
