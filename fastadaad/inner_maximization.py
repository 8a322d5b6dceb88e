"""x_natural -> x_adv: the projected search for the point where a method's inner objective is largest."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad import methods, ops
from fastadaad.config import InnerConfig, Mode, Start, ThreatModel
from fastadaad.inner_objectives import InnerObjective, Logits

STEPS = {"linf": ops.linf_step_, "l2": ops.l2_step_}

# Standard deviation of the Gaussian start, in pixel units: the authors' program.
GAUSSIAN_START_SCALE = 0.001


@contextmanager
def frozen(*networks: nn.Module, evaluation: bool = True) -> Iterator[None]:
    """No parameter of `networks` requires a gradient inside; with `evaluation`, every module is in eval mode.

    Each module's own mode and each parameter's own `requires_grad` come back afterwards, also after an exception.
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    parameters = [(parameter, parameter.requires_grad) for net in networks for parameter in net.parameters()]
    try:
        for module, _ in modes:
            module.training = module.training and not evaluation
        for parameter, _ in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)


def logits_at(networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any) -> Logits:
    """The logits that the objective takes, each [B, N]."""
    logits = tuple(network(x_adv) for network in networks)
    return logits if objective.surrogate is None else (*logits, objective.surrogate(x_adv, target))


def pixel_gradient(networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any) -> Tensor:
    """Gradient of the objective's sum with respect to x_adv [B, C, H, W], by one backward pass through each network."""
    x_adv = x_adv.detach().requires_grad_()
    logits = logits_at(networks, objective, x_adv, target)
    _, gradients = objective.logit_gradients(tuple(logit.detach() for logit in logits), target)
    return torch.autograd.grad(logits, x_adv, gradients)[0]


def traceable_pixel_gradient(
    networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any
) -> Tensor:
    """As pixel_gradient, in the form that torch.compile takes as one graph."""
    # Typed for has_aux=True as well.
    logits, pull_back = torch.func.vjp(lambda x: logits_at(networks, objective, x, target), x_adv)  # type: ignore[misc]
    _, gradients = objective.logit_gradients(logits, target)
    (grad_x,) = pull_back(gradients)
    return grad_x


def start_point(
    x_natural: Tensor, start: Start, inner: InnerConfig, generator: torch.Generator | None = None
) -> Tensor:
    """x_adv before the first step, fp32 [B, C, H, W], for each start of METHODS' table.

    gaussian: x_natural + 0.001 N(0, 1), not clipped, as the authors leave it (each step clips).
    uniform: a uniformly drawn point of the ball, clipped to [lower, upper].
    natural: x_natural itself.
    """
    if start == "natural":
        return x_natural.clone()
    x_adv = torch.empty_like(x_natural)
    if start == "gaussian":
        noise = x_adv.new_empty(x_adv.shape).normal_(generator=generator)
        return ops.random_start_(x_adv, x_natural, noise, GAUSSIAN_START_SCALE)
    noise = uniform_noise(x_natural, inner.threat_model, generator)
    return ops.random_start_(x_adv, x_natural, noise, inner.threat_model.epsilon, inner.lower, inner.upper)


def uniform_noise(x: Tensor, threat_model: ThreatModel, generator: torch.Generator | None) -> Tensor:
    """Points drawn uniformly from the unit ball of the threat model's norm, shaped as x [B, C, H, W]."""
    noise = x.new_empty(x.shape)
    if threat_model.norm == "linf":
        return noise.uniform_(-1, 1, generator=generator)
    # Uniform in a ball of d dimensions: a uniform direction, and a radius distributed as u^(1/d).
    direction = noise.normal_(generator=generator).flatten(1)
    radius = x.new_empty(len(x), 1).uniform_(generator=generator) ** (1 / max(direction.shape[1], 1))
    return (direction * (radius / direction.norm(dim=1, keepdim=True))).view(x.shape)


def resolve_mode(mode: Mode, device_type: str) -> Mode:
    """`auto` as what it stands for: compiled on CUDA; eager elsewhere, where compiling takes minutes."""
    if mode not in ("eager", "compiled", "auto"):
        raise ValueError(f"mode is {mode!r}: choose eager, compiled or auto")
    return mode if mode != "auto" else ("compiled" if device_type == "cuda" else "eager")


@dataclass(frozen=True, kw_only=True)
class InnerResult:
    """What a search leaves behind."""

    x_adv: Tensor
    """[B, C, H, W], without gradient."""
    teacher_logits_natural: Tensor | None
    """T(x_natural) [B, N] where the objective needed it, for the outer loss to reuse."""


class InnerMaximizer:
    """x_natural [B, C, H, W] fp32 in [0, 1] -> x_adv, for any networks that return logits [B, N].

    One backward pass per step, seeded with the analytic gradients of the logits; no weight gradients, no tape through
    the loss, no host synchronisation. Modes, `.grad` and `requires_grad` of both networks are the same afterwards.
    mode and `compile_options` (for torch.compile) as in Distiller; the attribute `mode` tells which it became.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | None = None,
        mode: Mode = "eager",
        compile_options: dict | None = None,
    ) -> None:
        self.mode = resolve_mode(mode, next(student.parameters()).device.type)
        self.method = methods.get(method) if isinstance(method, str) else method
        self.inner = inner or InnerConfig()
        self.student, self.teacher = student, teacher
        self.method.require_teacher(teacher)
        through_teacher = self.method.objective.through_teacher
        self._networks = (student, teacher) if through_teacher else (student,)
        self._gradient = self._gradient_function(compile_options or {})

    def _gradient_function(self, compile_options: dict) -> Callable[..., Tensor]:
        if self.mode == "eager":
            return pixel_gradient
        if not self.inner.student_eval:
            raise ValueError("student_eval is False, and mode compiled cannot update batch-norm inside: set mode=eager")
        return torch.compile(traceable_pixel_gradient, fullgraph=True, **compile_options)

    def __call__(
        self, x_natural: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """The adversarial images, without gradient. `generator` draws the start; None: torch's own for the device.

        Raises ValueError where the method needs labels [B] and gets None.
        """
        return self.search(x_natural, labels, generator=generator).x_adv

    def search(
        self, x_natural: Tensor, labels: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> InnerResult:
        """As the call itself, with what the search knows beside x_adv."""
        self.method.require_labels(labels)
        networks = [network for network in (self.student, self.teacher) if network is not None]
        # Whatever grad mode the caller is in, the loop needs its own.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            frozen(*networks[1:]),
            frozen(self.student, evaluation=self.inner.student_eval),
        ):
            return self._maximize(x_natural.detach(), labels, generator)

    def _maximize(self, x_natural: Tensor, labels: Tensor | None, generator: torch.Generator | None) -> InnerResult:
        inner, objective = self.inner, self.method.objective
        with torch.no_grad():
            target = objective.fixed_target(self.student, self.teacher, x_natural, labels)
        x_adv = start_point(x_natural, inner.start or self.method.start, inner, generator)
        step_ = STEPS[inner.threat_model.norm]
        for _ in range(inner.num_steps):
            grad_x = self._gradient(self._networks, objective, x_adv, target)
            step_(x_adv, x_natural, grad_x, inner.step_size, inner.threat_model.epsilon, inner.lower, inner.upper)
        known = objective.teacher_logits_natural
        return InnerResult(x_adv=x_adv, teacher_logits_natural=None if known is None else known(target))


def adaad_inner_loss(
    model: nn.Module,
    teacher_model: nn.Module,
    x_natural: Tensor,
    step_size: float = 2 / 255,
    steps: int = 10,
    epsilon: float = 8 / 255,
    BN_eval: bool = True,  # noqa: N803 - the name existing AdaAD programs use
    random_init: bool = True,
    clip_min: float = 0.0,
    clip_max: float = 1.0,
) -> Tensor:
    """Drop-in for the inner loop of existing AdaAD programs: x_natural [B, C, H, W] -> x_adv.

    The names are theirs; the mathematics is InnerMaximizer's with method adaad. The networks come back in the modes
    they were in. Raises ValueError for radii that make no sense (see InnerConfig).
    """
    inner = InnerConfig(
        threat_model=ThreatModel(norm="linf", epsilon=epsilon),
        step_size=step_size,
        num_steps=steps,
        start="gaussian" if random_init else "natural",
        student_eval=BN_eval,
        lower=clip_min,
        upper=clip_max,
    )
    return InnerMaximizer(model, teacher_model, method="adaad", inner=inner)(x_natural)
