"""Learning rate as a pure function of the progress of a run, from 0 to 1."""

import math

from fastadaad.run_config import OptimConfig


def _constant(progress: float, optim: OptimConfig) -> float:
    return 1.0


def _piecewise(progress: float, optim: OptimConfig) -> float:
    return 0.1 ** sum(progress >= milestone for milestone in optim.milestones)


def _cosine(progress: float, optim: OptimConfig) -> float:
    return 0.5 * (1 + math.cos(math.pi * _after_warmup(progress, optim)))


def _one_cycle(progress: float, optim: OptimConfig) -> float:
    # Linear up during the warm-up, linear down to 0 at the end.
    return 1 - _after_warmup(progress, optim)


def _after_warmup(progress: float, optim: OptimConfig) -> float:
    return (progress - optim.warmup) / (1 - optim.warmup)


SCHEDULES = {"constant": _constant, "piecewise": _piecewise, "cosine": _cosine, "one-cycle": _one_cycle}


def peak_learning_rate(optim: OptimConfig, batch_size: int) -> float:
    """Rate after the warm-up; it scales with batch_size / base_batch_size if that is set (Goyal et al., 2017)."""
    return optim.learning_rate * (batch_size / optim.base_batch_size if optim.base_batch_size else 1)


def learning_rate(progress: float, optim: OptimConfig, batch_size: int) -> float:
    """Returns the learning rate; it rises from 0 during the warm-up.

    Args:
        progress: Fraction of the run that is done, in [0, 1].
        optim: Settings of optimiser and schedule.
        batch_size: Images per step, over all ranks.
    """
    peak = peak_learning_rate(optim, batch_size)
    if progress < optim.warmup:
        return peak * progress / optim.warmup
    return peak * SCHEDULES[optim.schedule](progress, optim)
