"""The projected, normalised gradient step of an l_2 attack, in place."""

import torch
from torch import Tensor

from . import checks
from .registration import fake_in_place, register

# A gradient below this norm has no direction: the step shrinks with it, instead of dividing by zero.
SMALLEST_NORM = 1e-12


def l2_step_(
    x_adv: Tensor,
    x_natural: Tensor,
    grad_x: Tensor,
    step_size: float,
    epsilon: float,
    lower: float = 0.0,
    upper: float = 1.0,
) -> Tensor:
    """x_adv + step_size g / max(||g||_2, 1e-12) with g = grad_x, projected onto the l_2 ball, then clamped.

    Per sample: x_adv - x_natural is scaled to norm epsilon if it is longer; then pixels are clamped to [lower, upper].

    Args:
        x_adv: fp32 [B, ...], any layout; mutated.
        x_natural: fp32, the shape of x_adv, any layout.
        grad_x: fp32, fp16 or bf16, the shape of x_adv, any layout.
        step_size: l_2 norm of the step over all pixels of a sample, in pixel units.
        epsilon: Radius of the l_2 ball, in pixel units.
        lower: Smallest pixel value.
        upper: Largest pixel value.

    Returns:
        x_adv. A NaN makes the whole of its sample NaN.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value.
    """
    checks.check_step(x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
    _op(x_adv.detach(), x_natural.detach(), grad_x.detach(), step_size, epsilon, lower, upper)
    return x_adv


def _sample_norms(x: Tensor) -> Tensor:
    """Returns the l_2 norm of each sample of [B, ...], shaped [B, 1, ...]."""
    norms = torch.linalg.vector_norm(x.reshape(len(x), -1), dim=1) if x.numel() else x.new_zeros(len(x))
    return norms.reshape(-1, *[1] * (x.dim() - 1))


def l2_step_ref(
    x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float, lower: float, upper: float
) -> None:
    """Reference of l2_step_ in plain torch; mutates x_adv."""
    grad_x = grad_x.float()
    stepped = x_adv + step_size * (grad_x / _sample_norms(grad_x).clamp(min=SMALLEST_NORM))
    delta = stepped - x_natural
    norms = _sample_norms(delta)
    # <= instead of >: a sample with a NaN becomes NaN as a whole, instead of staying outside the ball.
    projected = torch.where(norms <= epsilon, stepped, x_natural + delta * (epsilon / norms))
    x_adv.copy_(projected.clamp(lower, upper))


_op = register(
    "l2_step_(Tensor(a!) x_adv, Tensor x_natural, Tensor grad_x, "
    "float step_size, float epsilon, float lower, float upper) -> ()",
    l2_step_ref,
    fake_in_place,
)
