"""The table of methods: what the inner loop maximises, where it starts, and what the student minimises.

A method is a row. A new one names an inner objective (inner_objectives.py) and an outer loss (outer_minimization.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor, nn

from fastadaad.config import Start
from fastadaad.inner_objectives import CROSS_ENTROPY, KL_TO_TEACHER, InnerObjective
from fastadaad.outer_minimization import MethodOptions, OuterBatch, adaad_loss, cross_entropy_loss


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    name: str
    objective: InnerObjective
    start: Start
    loss: Callable[[OuterBatch, MethodOptions], Tensor]
    needs_teacher: bool
    options: MethodOptions = field(default_factory=MethodOptions)

    def outer_loss(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        x_natural: Tensor,
        x_adv: Tensor,
        labels: Tensor | None = None,
        epoch: int = 0,
    ) -> Tensor:
        """The loss of `student` at x_adv [B, C, H, W], a scalar with gradient.

        Raises ValueError where the method needs a teacher or labels [B] and gets None.
        """
        if self.needs_teacher and teacher is None:
            raise ValueError(f"teacher is None: method {self.name} needs one")
        batch = OuterBatch(
            student=student, teacher=teacher, x_natural=x_natural, x_adv=x_adv, labels=labels, epoch=epoch
        )
        return self.loss(batch, self.options)


METHODS = {
    method.name: method
    for method in (
        Method(
            name="adaad",
            objective=KL_TO_TEACHER,
            start="gaussian",
            loss=adaad_loss,
            needs_teacher=True,
        ),
        Method(
            name="pgd-at",
            objective=CROSS_ENTROPY,
            start="uniform",
            loss=cross_entropy_loss,
            needs_teacher=False,
        ),
    )
}


def get(name: str, **options: Any) -> Method:
    """The method called `name`, with its options changed where given.

    Raises ValueError for an unknown method or option.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    method = METHODS[name]
    known = [field.name for field in fields(method.options)]
    for option in options:
        if option not in known:
            raise ValueError(f"unknown method option {option!r}: choose one of {', '.join(known)}")
    return replace(method, options=replace(method.options, **options))
