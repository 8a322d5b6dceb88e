"""One search: the pixel gradient at x_adv by analytic logit gradients, and the projected step along it.

A network is differentiated by autograd's tape in eager mode, and by torch.func.vjp under torch.compile, which traces it
without a graph break. On CUDA an eager or captured search runs student and teacher on two streams; a compiled one runs
on one stream, and fuses.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastadaad import ops
from fastadaad.config import InnerConfig
from fastadaad.methods.objectives import InnerObjective, Logits
from fastadaad.runtime.cuda_graph import run_on_two_streams

STEPS = {"linf": ops.linf_step_, "l2": ops.l2_step_}


class PullBack(Protocol):
    """Maps the gradient of the logits [B, N] to the gradient of the pixels [B, C, H, W].

    `retain_graph` keeps the tape for another call.
    """

    def __call__(self, gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
        """Pulls a gradient of the logits back to the pixels."""
        ...


# (function, x [B, C, H, W]) -> function(x) [B, N], and the pull-back of its gradients to x.
Vjp = Callable[[Callable[[Tensor], Tensor], Tensor], tuple[Tensor, PullBack]]


def tape_vjp(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, PullBack]:
    """Evaluates a function at x and returns its value and its pull-back, by autograd's tape.

    Raises:
        ValueError: The tape does not lead from the value back to x.
    """
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
    """Evaluates a function at x and returns its value and its pull-back, by torch.func.vjp."""
    # Typed for has_aux=True as well.
    output, vjp_function = torch.func.vjp(function, x)  # type: ignore[misc]

    def pull_back(gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
        return vjp_function(gradient, retain_graph=retain_graph)[0]

    return output, pull_back


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that stays the same over the steps of one search."""

    networks: tuple[nn.Module, ...]
    """Networks evaluated at x_adv, the student first."""
    objective: InnerObjective
    target: Any
    """The objective's fixed target."""
    x_natural: Tensor
    inner: InnerConfig
    vjp: Vjp
    """Differentiation of a network: tape_vjp, or traceable_vjp under torch.compile."""
    gradient_scale: float = 1.0
    """Factor of the logit gradients on their way through networks in fp16, where small numbers would vanish."""
    top: int = 3
    """Number of classes that the policy `linearized` expands."""
    step_factor: float = 1.0
    """Length of the step, as a multiple of inner.step_size."""

    @property
    def student(self) -> nn.Module:
        """The student, or its folded copy."""
        return self.networks[0]

    def evaluate(self, function: Callable[[Tensor], Tensor], x_adv: Tensor) -> tuple[Tensor, PullBack]:
        """Evaluates a network at x_adv: logits [B, N] and their pull-back, computed at `gradient_scale`."""
        output, pull_back = self.vjp(function, x_adv)
        scale = self.gradient_scale
        if scale == 1:
            return output, pull_back

        def scaled_pull_back(gradient: Tensor, *, retain_graph: bool = False) -> Tensor:
            return pull_back(scale * gradient, retain_graph=retain_graph) / scale

        return output, scaled_pull_back

    def pixel_gradients(self, x_adv: Tensor) -> tuple[Logits, Logits, list[Tensor]]:
        """Logits at x_adv, the gradient of the objective's sum with respect to each, and its part in that to x_adv.

        Costs one forward and one backward pass through each network.
        """
        functions: list[Callable[[Tensor], Tensor]] = [*self.networks]
        surrogate = self.objective.surrogate
        if surrogate is not None:
            functions.append(lambda x: surrogate(x, self.target))
        pulled = _concurrently(x_adv.device, [partial(self.evaluate, function, x_adv) for function in functions])
        logits = tuple(output for output, _ in pulled)
        _, logit_gradients = self.objective.logit_gradients(logits, self.target)
        pairs = zip(pulled, logit_gradients, strict=True)
        tasks = [partial(pull_back, gradient) for (_, pull_back), gradient in pairs]
        return logits, logit_gradients, _concurrently(x_adv.device, tasks)

    def steps(self) -> Iterator["Search"]:
        """Yields the search once for each of its steps, with the length of that step."""
        for factor in self.inner.step_factors or (1.0,) * self.inner.num_steps:
            yield self if factor == 1 else replace(self, step_factor=factor)

    def step_(self, x_adv: Tensor, gradients: list[Tensor]) -> None:
        """Takes the projected step along the sum of `gradients` [B, C, H, W], in place on x_adv."""
        first, *others = gradients
        inner = self.inner
        project_ = STEPS[inner.threat_model.norm]
        project_(
            x_adv,
            self.x_natural,
            sum(others, start=first),
            inner.step_size * self.step_factor,
            inner.threat_model.epsilon,
            inner.lower,
            inner.upper,
        )


def _concurrently(device: torch.device, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
    """Results of `tasks`; two tasks run on two streams of a CUDA device, except in a compiled graph."""
    if len(tasks) == 2 and not torch.compiler.is_compiling():
        return [*run_on_two_streams(device, *tasks)]
    return [task() for task in tasks]
