"""Searches on given networks, and the pixel gradient of an objective, without an InnerMaximizer."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastadaad.config import InnerConfig
from fastadaad.inner.search import Search, Vjp, tape_vjp
from fastadaad.methods.objectives import InnerObjective


def search_of(
    networks: Sequence[nn.Module],
    objective: InnerObjective,
    x: Tensor,
    target: Any = None,
    *,
    vjp: Vjp = tape_vjp,
    gradient_scale: float = 1.0,
    inner: InnerConfig | None = None,
    top: int = 3,
) -> Search:
    """Returns a search of `objective` around x [B, C, H, W]; default `inner`: InnerConfig()."""
    return Search(
        networks=tuple(networks),
        objective=objective,
        target=target,
        x_natural=x,
        inner=inner or InnerConfig(),
        vjp=vjp,
        gradient_scale=gradient_scale,
        top=top,
    )


def pixel_gradient(
    vjp: Vjp,
    networks: Sequence[nn.Module],
    objective: InnerObjective,
    x: Tensor,
    target: Any = None,
    gradient_scale: float = 1.0,
) -> Tensor:
    """Returns the gradient [B, C, H, W] of the objective's sum at x, summed over the networks."""
    search = search_of(networks, objective, x, target, vjp=vjp, gradient_scale=gradient_scale)
    *_, (first, *others) = search.pixel_gradients(x)
    return sum(others, start=first)
