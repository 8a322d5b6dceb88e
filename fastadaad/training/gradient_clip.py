"""Limit on the length of a gradient before the update, without a host sync."""

from typing import Any

import torch
from torch import Tensor

from fastadaad.training.nonfinite import TENSORS


def clip_gradients(optimizer: Any, scaler: torch.amp.GradScaler, max_norm: float) -> Tensor:
    """Scales the gradients of all parameters so that their common norm is at most `max_norm`, in place.

    In fp16 the gradients are unscaled first. An infinite norm would make zeros of finite gradients, so it counts as a
    non-finite gradient; in fp16 the scaler decides about infinite gradients.

    Args:
        optimizer: Optimiser of the parameters, or its CapturableOptimizer.
        scaler: Scaler of the loss, after the backward pass.
        max_norm: Largest norm, above 0.

    Returns:
        bool [5] on the device, in the order of nonfinite.TENSORS: true for the gradients if their norm is not finite.
    """
    scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    found = torch.zeros(len(TENSORS), dtype=torch.bool, device=norm.device)
    if not scaler.is_enabled():
        found[TENSORS.index("gradients")] = ~norm.isfinite()
    return found
