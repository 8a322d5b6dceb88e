"""The projected sign step of an l_inf attack, in place."""

import torch
from torch import Tensor

from . import checks
from .registration import fake_in_place, register


def linf_step_(
    x_adv: Tensor,
    x_natural: Tensor,
    grad_x: Tensor,
    step_size: float,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
) -> Tensor:
    """x_adv + step_size sign(grad_x), clamped to [x_natural - epsilon, x_natural + epsilon], then to [lower, upper].

    x_adv (mutated and returned), x_natural: fp32 [B, ...]; grad_x: fp32, fp16 or bf16 of the same shape; any layouts.
    step_size, epsilon, lower, upper: pixel units. sign(0) = 0, sign(NaN) as torch.sign; a NaN pixel stays NaN.
    Raises ValueError for arguments that do not fit.
    """
    checks.check_step(x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
    _op(x_adv.detach(), x_natural.detach(), grad_x.detach(), step_size, epsilon, lower, upper)
    return x_adv


def linf_step_ref(
    x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float, lower: float, upper: float
) -> None:
    """linf_step_ in plain torch: mutates x_adv, returns nothing."""
    stepped = x_adv + step_size * grad_x.float().sign()
    projected = torch.clamp(stepped, x_natural - epsilon, x_natural + epsilon)
    x_adv.copy_(projected.clamp(lower, upper))


_op = register(
    "linf_step_(Tensor(a!) x_adv, Tensor x_natural, Tensor grad_x, "
    "float step_size, float epsilon, float lower, float upper) -> ()",
    linf_step_ref,
    fake_in_place,
)
