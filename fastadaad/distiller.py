"""One training step for people with their own loop: x_natural, labels -> the student, updated."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import InnerConfig, Mode
from fastadaad.inner_maximization import InnerMaximizer, InnerResult, frozen
from fastadaad.weight_perturbation import kept_buffers, perturbed_weights


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves on the device; reading a value of it is a host synchronisation, so do it seldom."""

    loss: Tensor
    """Outer loss before the update, a scalar; with AWP, at the perturbed weights."""
    x_adv: Tensor
    """[B, C, H, W]"""


class Distiller:
    """Inner maximisation, outer loss, backward and optimiser step, in this order.

    mode `compiled` puts the inner step and the outer loss under torch.compile (one graph each); `auto` is compiled on
    CUDA and eager elsewhere; the attribute `mode` tells which it became. The student stays in its own mode if that is
    train mode (so that frozen batch-norm layers stay frozen) and is put into train mode otherwise; the teacher's
    modes and `requires_grad` are the same afterwards. With `awp_gamma` the update is that of the weights perturbed by
    AWP (Wu et al., 2020; gamma 0.005 there), from epoch `awp_begin` on; it costs a second outer loss.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | None = None,
        optimizer: torch.optim.Optimizer,
        mode: Mode = "auto",
        compile_options: dict | None = None,
        awp_gamma: float = 0.0,
        awp_begin: int = 0,
    ) -> None:
        self.maximizer = InnerMaximizer(
            student, teacher, method=method, inner=inner, mode=mode, compile_options=compile_options
        )
        self.mode = self.maximizer.mode
        self.method = self.maximizer.method
        self.student, self.teacher = student, teacher
        self.optimizer = optimizer
        self.awp_gamma, self.awp_begin = awp_gamma, awp_begin
        self._outer_loss = self.method.outer_loss
        if self.mode == "compiled":
            self._outer_loss = torch.compile(self._outer_loss, fullgraph=True, **compile_options or {})

    def step(
        self,
        x_natural: Tensor,
        labels: Tensor | None = None,
        *,
        epoch: int = 0,
        generator: torch.Generator | None = None,
    ) -> StepResult:
        """Train the student on one batch: x_natural fp32 [B, C, H, W] in [0, 1], labels [B] or None.

        Mutates the student's parameters, their `.grad` and the student's running statistics. Raises ValueError where
        the method needs labels and gets None.
        """
        with frozen(*[self.teacher] if self.teacher is not None else []):
            inner = self.maximizer.search(x_natural, labels, generator=generator)
            if not self.student.training:
                self.student.train()
            loss_and_gradients = partial(self._loss_and_gradients, x_natural, inner, labels, epoch)
            if self.awp_gamma and epoch >= self.awp_begin:
                with kept_buffers(self.student):
                    loss_and_gradients()
                with perturbed_weights(self.student, self.awp_gamma):
                    loss = loss_and_gradients()
            else:
                loss = loss_and_gradients()
        self.optimizer.step()
        return StepResult(loss=loss.detach(), x_adv=inner.x_adv)

    def _loss_and_gradients(self, x_natural: Tensor, inner: InnerResult, labels: Tensor | None, epoch: int) -> Tensor:
        """The outer loss at the student's present weights, whose `.grad` it fills."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._outer_loss(
            self.student,
            self.teacher,
            x_natural,
            inner.x_adv,
            labels,
            epoch,
            teacher_logits_natural=inner.teacher_logits_natural,
        )
        loss.backward()
        return loss
