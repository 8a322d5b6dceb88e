"""AWP, SAM and ASAM: minimise the loss at the worst weights near the student's, for a flatter minimum.

They differ in the ball: AWP (Wu et al., 2020) has a radius per weight, relative to its norm; SAM (Foret et al., 2021)
one for all parameters together; ASAM (Kwon et al., 2021) the same, in units of each number's own size.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastadaad.config import AwpForm

# Added to |w| in ASAM, so that numbers near 0 move too: eta of its authors' program.
ASAM_ETA = 0.01


@contextmanager
def perturbed_weights(network: nn.Module, gamma: float, form: AwpForm = "awp") -> Iterator[None]:
    """Moves the parameters of `network` along their gradients inside.

    With g the gradient, and norms over all numbers of a tensor:

    - awp: w + gamma |w| g / |g| for each weight of two or more dimensions; biases and batch-norm stay.
    - sam: w + gamma g / |g of all parameters together|.
    - asam: w + gamma t^2 g / |t g of all parameters together|, with t = abs(w) + 0.01 for weights and 1 for biases.

    The parameters are restored bitwise afterwards, also after an exception; those without a gradient are not moved.
    """
    weights = [p for p in network.parameters() if p.grad is not None and (p.dim() > 1 or form != "awp")]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            if form == "awp":
                _move_each(weights, gamma)
            else:
                _move_together(network, gamma, adaptive=form == "asam")
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def _above_zero(length: Tensor) -> Tensor:
    """A norm as a divisor: zero gradients leave their weights unchanged."""
    return length.clamp(min=torch.finfo(length.dtype).tiny)


def _move_each(weights: list[nn.Parameter], gamma: float) -> None:
    for weight in weights:
        gradient = weight.grad
        assert gradient is not None
        weight.add_(gradient * (gamma * weight.norm() / _above_zero(gradient.norm())))


def _move_together(network: nn.Module, gamma: float, *, adaptive: bool) -> None:
    pairs = []
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            scaled = adaptive and not name.endswith("bias")
            pairs.append((parameter, parameter.abs() + ASAM_ETA if scaled else torch.ones_like(parameter)))
    if not pairs:
        return
    gradients = [size * parameter.grad for parameter, size in pairs]  # type: ignore[operator]
    length = _above_zero(torch.stack([gradient.norm() for gradient in gradients]).norm())
    for (parameter, size), gradient in zip(pairs, gradients, strict=True):
        parameter.add_(size * gradient * (gamma / length))


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Restores the buffers of `network`, such as running statistics, at the end."""
    originals = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, original in zip(network.buffers(), originals, strict=True):
            buffer.copy_(original)
