"""One step of the inner loop, in the two forms it runs in: as it stands, and as one graph of torch.compile.

The forms differ in how a network is differentiated: by autograd's tape, or by torch.func.vjp, which torch.compile takes
without a break. On CUDA the step as it stands, captured or not, runs student and teacher on two streams; a compiled one
has one stream, and fuses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastadaad import ops
from fastadaad.config import InnerConfig, Mode
from fastadaad.methods.objectives import InnerObjective, Logits
from fastadaad.runtime.compile import one_graph
from fastadaad.runtime.cuda_graph import run_on_two_streams

STEPS = {"linf": ops.linf_step_, "l2": ops.l2_step_}


class PullBack(Protocol):
    """Gradient of the logits [B, N] -> gradient of the pixels [B, C, H, W]; `retain_graph`: it is called again."""

    def __call__(self, gradient: Tensor, *, retain_graph: bool = False) -> Tensor: ...


# (function, x [B, C, H, W]) -> function(x) [B, N], and the pull-back of its gradients to x.
Vjp = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, PullBack]]


def tape_vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, PullBack]:
    """By autograd's tape. Raises ValueError where it does not lead from function(x) back to x."""
    x = x.detach().requires_grad_()
    output = function(x)
    if not output.requires_grad:
        raise ValueError(
            "the logits of a network have no gradient to its images: leave torch.no_grad and detach out of its forward"
        )

    def pull_back(gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
        return torch.autograd.grad(output, x, gradient, retain_graph=retain_graph)[0]

    return output.detach(), pull_back


def traceable_vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, PullBack]:
    """By torch.func.vjp."""
    # Typed for has_aux=True as well.
    output, vjp_function = torch.func.vjp(function, x)  # type: ignore[misc]

    def pull_back(gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
        return vjp_function(gradient, retain_graph=retain_graph)[0]

    return output, pull_back


def scaled(vjp: Vjp, scale: float) -> Vjp:
    """`vjp` with its gradients multiplied by `scale` on their way through the function, for functions in fp16."""
    if scale == 1:
        return vjp

    def scaled_vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, PullBack]:
        output, inner_pull_back = vjp(function, x)

        def pull_back(gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
            return inner_pull_back(scale * gradient, retain_graph=retain_graph) / scale

        return output, pull_back

    return scaled_vjp


def functions_of(networks: Sequence[nn.Module], objective: InnerObjective, target: Any) -> list[Callable]:
    """What the objective evaluates at x_adv: the networks, and the surrogate where it has one."""
    surrogate = objective.surrogate
    return [*networks] if surrogate is None else [*networks, lambda x_adv: surrogate(x_adv, target)]


def pixel_gradients(
    vjp: Vjp, networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any
) -> tuple[Logits, list[Tensor]]:
    """The logits at x_adv, and what each of them adds to the gradient of the objective's sum with respect to x_adv."""
    functions = functions_of(networks, objective, target)
    pulled = beside_each_other(x_adv.device, [partial(vjp, function, x_adv) for function in functions])
    logits = tuple(output for output, _ in pulled)
    _, gradients = objective.logit_gradients(logits, target)
    pairs = zip(pulled, gradients, strict=True)
    return logits, beside_each_other(x_adv.device, [partial(pull_back, gradient) for (_, pull_back), gradient in pairs])


def beside_each_other(device: torch.device, tasks: list[Callable[[], Any]]) -> list[Any]:
    """The results of `tasks`; two run on two streams of a CUDA device, save in a compiled graph."""
    if len(tasks) == 2 and not torch.compiler.is_compiling():
        return [*run_on_two_streams(device, *tasks)]
    return [task() for task in tasks]


def pixel_gradient(
    vjp: Vjp, networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any
) -> Tensor:
    """Gradient of the objective's sum with respect to x_adv [B, C, H, W], by one backward pass through each network."""
    _, (first, *others) = pixel_gradients(vjp, networks, objective, x_adv, target)
    return sum(others, start=first)


def project_(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, inner: InnerConfig) -> None:
    """The projected step along grad_x, in place."""
    step_ = STEPS[inner.threat_model.norm]
    step_(x_adv, x_natural, grad_x, inner.step_size, inner.threat_model.epsilon, inner.lower, inner.upper)


@dataclass(frozen=True, kw_only=True)
class Search:
    """What stays the same over the steps of a search; `networks` are those evaluated at x_adv, the student first."""

    networks: tuple[nn.Module, ...]
    objective: InnerObjective
    inner: InnerConfig
    top: int
    gradient_scale: float


def ask_step(vjp: Vjp, use: Any, search: Search, x_adv: Tensor, x_natural: Tensor, target: Any) -> Any:
    """One step in place on x_adv in which the teacher is asked, if there is one; returns what is kept of it."""
    vjp = scaled(vjp, search.gradient_scale)
    grad_x, kept = use.ask(vjp, search.networks, search.objective, x_adv, target, search.top)
    project_(x_adv, x_natural, grad_x, search.inner)
    return kept


def reuse_step(vjp: Vjp, use: Any, search: Search, x_adv: Tensor, x_natural: Tensor, target: Any, kept: Any) -> None:
    """One step in place on x_adv with what was kept of the teacher."""
    vjp = scaled(vjp, search.gradient_scale)
    grad_x = use.reuse(vjp, search.networks[0], search.objective, x_adv, target, kept)
    project_(x_adv, x_natural, grad_x, search.inner)


class Steps:
    """Both kinds of step, as they stand or each as one graph."""

    def __init__(self, mode: Mode, compile_options: dict) -> None:
        if mode == "eager" or compile_options.get("disable"):
            self.ask, self.reuse = partial(ask_step, tape_vjp), partial(reuse_step, tape_vjp)
        else:
            ask, reuse = (one_graph(step, **compile_options) for step in (ask_step, reuse_step))
            self.ask, self.reuse = partial(ask, traceable_vjp), partial(reuse, traceable_vjp)
