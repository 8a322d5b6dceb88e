"""The learning rate as a pure function of the epoch, a real number: step 50 of 200 in epoch 3 is epoch 3.25."""

import math

from fastadaad.config import OptimConfig


def _constant(epoch: float, optim: OptimConfig) -> float:
    return 1.0


def _piecewise(epoch: float, optim: OptimConfig) -> float:
    return 0.1 ** sum(epoch >= milestone for milestone in optim.milestones)


def _cosine(epoch: float, optim: OptimConfig) -> float:
    span = max(optim.epochs - optim.warmup_epochs, 1e-9)
    return 0.5 * (1 + math.cos(math.pi * min((epoch - optim.warmup_epochs) / span, 1.0)))


def _one_cycle(epoch: float, optim: OptimConfig) -> float:
    # Straight up during the warm-up, straight down to 0 at the last step.
    return (optim.epochs - epoch) / max(optim.epochs - optim.warmup_epochs, 1e-9)


SCHEDULES = {"constant": _constant, "piecewise": _piecewise, "cosine": _cosine, "one-cycle": _one_cycle}


def learning_rate(epoch: float, optim: OptimConfig) -> float:
    """Learning rate at `epoch`, in [0, optim.epochs]; it rises linearly from 0 during the warm-up."""
    if epoch < optim.warmup_epochs:
        return optim.learning_rate * epoch / optim.warmup_epochs
    return optim.learning_rate * SCHEDULES[optim.schedule](epoch, optim)
