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

    Args:
        x_adv: fp32 [B, ...], any layout; mutated.
        x_natural: fp32, the shape of x_adv, any layout.
        grad_x: fp32, fp16 or bf16, the shape of x_adv, any layout.
        step_size: Change of a pixel, in pixel units.
        epsilon: Radius of the l_inf ball, in pixel units.
        lower: Smallest pixel value.
        upper: Largest pixel value.

    Returns:
        x_adv. sign(0) = 0, and sign(NaN) is that of torch.sign; a NaN pixel stays NaN.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value.
    """
    checks.check_step(x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
    _op(x_adv.detach(), x_natural.detach(), grad_x.detach(), step_size, epsilon, lower, upper)
    return x_adv


def linf_step_ref(
    x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float, lower: float, upper: float
) -> None:
    """Reference of linf_step_ in plain torch; mutates x_adv."""
    stepped = x_adv + step_size * grad_x.float().sign()
    projected = torch.clamp(stepped, x_natural - epsilon, x_natural + epsilon)
    x_adv.copy_(projected.clamp(lower, upper))


_op = register(
    "linf_step_(Tensor(a!) x_adv, Tensor x_natural, Tensor grad_x, "
    "float step_size, float epsilon, float lower, float upper) -> ()",
    linf_step_ref,
    fake_in_place,
)
