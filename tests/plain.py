"""The inner loop as the methods define it, by autograd through torch's losses: the reference in tests of the search."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def kl_to_teacher(student: nn.Module, teacher: nn.Module) -> Callable[[Tensor], Tensor]:
    """Returns x -> sum over the batch of kl(S(x), T(x)), with gradient through both networks."""
    return lambda x: F.kl_div(student(x).log_softmax(1), teacher(x).softmax(1), reduction="sum")


def cross_entropy(student: nn.Module, labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: F.cross_entropy(student(x), labels, reduction="sum")


def inner_loop(
    value: Callable[[Tensor], Tensor],
    x_natural: Tensor,
    start: Tensor,
    *,
    norm: str,
    epsilon: float,
    step_size: float,
    num_steps: int,
    lower: float = 0.0,
    upper: float = 1.0,
) -> Tensor:
    """Returns x_adv after `num_steps` projected steps from `start` that raise `value`."""
    x_adv = start
    for _ in range(num_steps):
        x_adv = x_adv.detach().requires_grad_()
        grad_x = torch.autograd.grad(value(x_adv), x_adv)[0]
        step = linf_step if norm == "linf" else l2_step
        x_adv = step(x_adv.detach(), x_natural, grad_x, step_size, epsilon).clamp(lower, upper)
    return x_adv


def linf_step(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float) -> Tensor:
    return torch.min(torch.max(x_adv + step_size * grad_x.sign(), x_natural - epsilon), x_natural + epsilon)


def l2_step(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float) -> Tensor:
    delta = x_adv + step_size * grad_x / lengths(grad_x).clamp(min=1e-12) - x_natural
    return x_natural + delta * (epsilon / lengths(delta).clamp(min=1e-12)).clamp(max=1)


def lengths(x: Tensor) -> Tensor:
    """Returns the l2 norm of each image, [B, 1, 1, 1]."""
    return x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


def fraction_equal(x: Tensor, y: Tensor) -> float:
    """Fraction of the pixels that agree within 1e-6; not all do, as rounding changes the sign of gradients near 0."""
    return ((x - y).abs() <= 1e-6).double().mean().item()


def mean_kl(student: nn.Module, teacher: nn.Module, x: Tensor) -> float:
    """Mean kl(S(x), T(x)), both in eval mode."""
    with torch.no_grad():
        return kl_to_teacher(copy.deepcopy(student).eval(), copy.deepcopy(teacher).eval())(x).item() / len(x)
