"""AWP (Wu et al., 2020): minimises the loss at the worst weights near the student's, for a flatter minimum."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def perturbed_weights(network: nn.Module, gamma: float) -> Iterator[None]:
    """Replaces each weight w of two or more dimensions by w + gamma |w| g / |g| inside, with g = w.grad.

    Norms are Frobenius norms. The weights are restored bitwise afterwards, also after an exception. Biases, batch-norm
    parameters and parameters without a gradient are not perturbed.
    """
    weights = [p for p in network.parameters() if p.grad is not None and p.dim() > 1]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                gradient = weight.grad
                assert gradient is not None
                # A zero gradient leaves its weight unchanged.
                length = gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)
                weight.add_(gradient * (gamma * weight.norm() / length))
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


@contextmanager
def kept_buffers(network: nn.Module) -> Iterator[None]:
    """Restores the buffers of `network`, such as running statistics, at the end."""
    originals = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        for buffer, original in zip(network.buffers(), originals, strict=True):
            buffer.copy_(original)
