"""One batch on its way through the outer minimisation, and the logits that losses ask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class OuterBatch:
    """What an outer loss sees. Each of the four logits is computed when it is first asked for, and once.

    A loss asks for the student's logits at x_natural before those at x_adv, as the authors' programs do: the order
    decides the running statistics of batch-norm.
    """

    student: nn.Module
    teacher: nn.Module | None
    x_natural: Tensor
    x_adv: Tensor
    labels: Tensor | None
    epoch: int
    logits: dict[str, Tensor] = field(default_factory=dict)
    """Those computed so far, by name."""

    @property
    def student_logits_natural(self) -> Tensor:
        """S(x_natural) [B, N], with gradient."""
        return self._once("student_logits_natural", lambda: self.student(self.x_natural))

    @property
    def student_logits_adv(self) -> Tensor:
        """S(x_adv) [B, N], with gradient."""
        return self._once("student_logits_adv", lambda: self.student(self.x_adv))

    @property
    def teacher_logits_natural(self) -> Tensor:
        """T(x_natural) [B, N], without gradient."""
        return self._once("teacher_logits_natural", lambda: self.teacher_logits(self.x_natural))

    @property
    def teacher_logits_adv(self) -> Tensor:
        """T(x_adv) [B, N], without gradient."""
        return self._once("teacher_logits_adv", lambda: self.teacher_logits(self.x_adv))

    def teacher_logits(self, x: Tensor) -> Tensor:
        """T(x) [B, N] at any x [B, C, H, W], without gradient; for methods that need a teacher (Method checks it)."""
        assert self.teacher is not None
        with torch.no_grad():
            return self.teacher(x)

    @property
    def required_labels(self) -> Tensor:
        """Labels [B], for methods that need them (Method checks it)."""
        assert self.labels is not None
        return self.labels

    # functools.cached_property takes a lock, which torch.compile does not trace.
    def _once(self, name: str, compute: Callable[[], Tensor]) -> Tensor:
        if name not in self.logits:
            self.logits[name] = compute()
        return self.logits[name]
