"""Training pass of the student in bf16 or fp16: fp32 weights and statistics, cast when a layer computes."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastadaad.config import Precision, require_finite, require_integer
from fastadaad.runtime.overridden_forward import overridden_forward
from fastadaad.runtime.precision import DTYPES


class MixedPrecision(nn.Module):
    """A network under autocast: x fp32 [B, C, H, W] -> logits fp32 [B, N]."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Maps x fp32 [B, C, H, W] to logits fp32 [B, N], under autocast."""
        with torch.autocast(x.device.type, self.dtype):
            return self.network(x).float()


def in_precision(network: nn.Module, precision: Precision) -> nn.Module:
    """Returns `network` for fp32 and tf32, and `network` under autocast for bf16 and fp16."""
    dtype = DTYPES[precision]
    return network if dtype == torch.float32 else MixedPrecision(network, dtype)


@contextmanager
def first_convolution_in_fp32(network: nn.Module) -> Iterator[None]:
    """Excludes the first convolution of a MixedPrecision from autocast inside the context; others stay as they are.

    This convolution reads pixels, and bf16 numbers in [0.5, 1) are 1/256 apart: half of a step of 2/255. On CUDA it is
    in TF32 if uses_tf32(precision).
    """
    first = next((module for module in network.modules() if type(module) is nn.Conv2d), None)
    if first is None or not isinstance(network, MixedPrecision):
        yield
        return
    with overridden_forward([first], _forward_in_fp32):
        yield


def _forward_in_fp32(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return nn.Conv2d.forward(convolution, x.float())


def gradient_scaler(
    precision: Precision, optimizer: torch.optim.Optimizer, device: torch.device
) -> torch.amp.GradScaler:
    """Returns a scaler that scales the loss in fp16 and skips updates with infinite gradients; else it is disabled.

    Checkpoints must hold its state.

    Args:
        precision: Precision of the student.
        optimizer: Optimizer of the student. An fp16 step of one without support for skipping waits for the device,
            with a warning.
        device: Device of the student.
    """
    enabled = precision == "fp16"
    if enabled and not getattr(optimizer, "_step_supports_amp_scaling", False):
        warnings.warn(
            f"precision fp16 waits for the device at each step of {type(optimizer).__name__}, which cannot leave out "
            "an update by itself: bf16 does not, nor does SGD with fused=True",
            stacklevel=2,
        )
    if enabled:
        _give_first_momenta(optimizer)
    return torch.amp.GradScaler(device.type, enabled=enabled)


def scaler_state(scaler: torch.amp.GradScaler, device: torch.device) -> list[Tensor]:
    """Returns the tensors that a step with the scaler changes, which are made here if they are new."""
    if not scaler.is_enabled():
        return []
    scaler.scale(torch.zeros((), device=device))
    return [scaler._scale, scaler._growth_tracker]  # type: ignore[list-item]


def _give_first_momenta(optimizer: torch.optim.Optimizer) -> None:
    """Gives a new fused SGD momenta of zeros, which do not change its first update.

    If the first update is skipped, torch 2.14 continues with uninitialised memory as momenta, which may hold NaN.
    """
    for group in optimizer.param_groups if isinstance(optimizer, torch.optim.SGD) else []:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def check_awp(precision: Precision, awp_gamma: float, awp_begin: int = 0) -> None:
    """Checks the settings of AWP.

    Args:
        precision: Precision of the student.
        awp_gamma: Norm of the perturbation as a fraction of the norm of each weight.
        awp_begin: First epoch with AWP.

    Raises:
        ValueError: A gamma that is negative or not finite, a negative epoch, or AWP in fp16, in which an infinite
            gradient makes NaN of weights.
    """
    require_finite("awp_gamma", awp_gamma, "finite, 0 or more, such as 0.005", least=0)
    require_integer("awp_begin", awp_begin, 0)
    if precision == "fp16" and awp_gamma:
        raise ValueError("AWP follows gradients, which may be infinite in fp16: set precision.student to bf16")
