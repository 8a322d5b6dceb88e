"""The table of methods: what the inner loop maximises, where it starts, and what the student minimises.

A method is a row. A new one names an inner objective (inner_objectives.py), an outer loss (outer_minimization.py) and
the options that the loss reads (method_options.py); docs/methods.md has an example.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from fastadaad.config import Start
from fastadaad.methods.igdm import add_igdm, igdm_weight
from fastadaad.methods.losses import (
    adaad_loss,
    adaiad_loss,
    akd_loss,
    ard_loss,
    iad_loss,
    introspects,
    pgd_at_loss,
    rslad_loss,
    trades_loss,
)
from fastadaad.methods.objectives import (
    CROSS_ENTROPY,
    KL_TO_STUDENT_AT_NATURAL,
    KL_TO_TEACHER,
    KL_TO_TEACHER_AT_NATURAL,
    InnerObjective,
)
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.outer_batch import OuterBatch
from fastadaad.methods.saad import KL_TO_LINEAR_TEACHER, saad_loss


def all_of_the_epoch(epoch: int, options: MethodOptions) -> int:
    return epoch


def nothing_of_the_epoch(epoch: int, options: MethodOptions) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table."""

    name: str
    objective: InnerObjective
    start: Start
    loss: Callable[[OuterBatch, MethodOptions], Tensor]
    reads: tuple[str, ...] = ()
    """The options that the loss reads; it has no others."""
    options: MethodOptions = field(default_factory=MethodOptions)
    needs_teacher: bool = True
    needs_labels: bool = True
    of_epoch: Callable[[int, MethodOptions], Hashable] = all_of_the_epoch
    """What the loss takes of the epoch. A captured step is captured anew where it changes."""
    mean_over_images: bool = True
    """The loss is a mean of one value per image, which no other image of the batch changes."""
    paper: str = ""

    def require_teacher(self, teacher: nn.Module | None) -> None:
        """Raises ValueError where the method needs a teacher and gets None."""
        if self.needs_teacher and teacher is None:
            raise ValueError(f"teacher is None: method {self.name} needs one")

    def require_labels(self, labels: Tensor | None) -> None:
        """Raises ValueError where the method needs labels and gets None."""
        if self.needs_labels and labels is None:
            raise ValueError(f"labels are missing: method {self.name} needs them")

    def require_parts(self, micro_batch: int | None) -> None:
        """Raises ValueError for parts of no image, and where the loss of a batch is no mean over its images."""
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be 1 or more, or left out")
        if micro_batch is not None and not self.mean_over_images:
            raise ValueError(
                f"method {self.name} weights an image by the others of its batch, which cannot be taken in parts: "
                "leave out micro_batch"
            )

    def with_options(self, **options: Any) -> "Method":
        """The row with options changed. Raises ValueError for one that its loss does not read."""
        for option in options:
            if option not in self.reads:
                known = ", ".join(self.reads) or "none"
                raise ValueError(f"method {self.name} has no option {option!r}: its options are {known}")
        return replace(self, options=replace(self.options, **options))

    def outer_loss(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        x_natural: Tensor,
        x_adv: Tensor,
        labels: Tensor | None = None,
        epoch: int = 0,
        *,
        teacher_logits_natural: Tensor | None = None,
    ) -> Tensor:
        """The loss of `student` at x_adv [B, C, H, W], a scalar with gradient.

        teacher_logits_natural [B, N]: T(x_natural), where the caller has it already and need not pay for it again.
        Raises ValueError where the method needs a teacher or labels [B] and gets None, and for a teacher in train mode.
        """
        if self.needs_teacher and teacher is not None and _learns_statistics(teacher):
            raise ValueError("teacher is in train mode, where its batch-norm learns: call teacher.eval()")
        batch = self.outer_batch(
            student, teacher, x_natural, x_adv, labels, epoch, teacher_logits_natural=teacher_logits_natural
        )
        return self.loss(batch, self.options)

    def outer_batch(
        self,
        student: nn.Module,
        teacher: nn.Module | None,
        x_natural: Tensor,
        x_adv: Tensor,
        labels: Tensor | None = None,
        epoch: int = 0,
        *,
        teacher_logits_natural: Tensor | None = None,
    ) -> OuterBatch:
        """What the loss takes; arguments and errors are outer_loss's."""
        self.require_teacher(teacher)
        self.require_labels(labels)
        known = {} if teacher_logits_natural is None else {"teacher_logits_natural": teacher_logits_natural}
        return OuterBatch(
            student=student,
            teacher=teacher,
            x_natural=x_natural,
            x_adv=x_adv,
            labels=labels,
            epoch=epoch,
            logits=known,
        )


_DISTILLATION = ("teacher_weight", "temperature", "kl_reduction", "clean_statistics")
_INTROSPECTION = (*_DISTILLATION, "introspection_begin", "introspection_power", "introspective_teacher_term")
_IGDM = ("igdm_weight", "igdm_ramp_epochs")
_WEIGHTED_KL = ("adversarial_weight", "kl_reduction", "clean_statistics")

METHODS = {
    method.name: method
    for method in (
        Method(
            name="adaad",
            paper="Huang et al., CVPR 2023",
            objective=KL_TO_TEACHER,
            start="gaussian",
            loss=adaad_loss,
            of_epoch=nothing_of_the_epoch,
            reads=_WEIGHTED_KL,
            needs_labels=False,
        ),
        Method(
            name="adaiad",
            paper="Huang et al., CVPR 2023",
            objective=KL_TO_TEACHER,
            start="gaussian",
            loss=adaiad_loss,
            of_epoch=introspects,
            reads=_INTROSPECTION,
        ),
        Method(
            name="pgd-at",
            paper="Madry et al., 2018",
            objective=CROSS_ENTROPY,
            start="uniform",
            loss=pgd_at_loss,
            of_epoch=nothing_of_the_epoch,
            needs_teacher=False,
        ),
        Method(
            name="trades",
            paper="Zhang et al., 2019",
            objective=KL_TO_STUDENT_AT_NATURAL,
            start="gaussian",
            loss=trades_loss,
            of_epoch=nothing_of_the_epoch,
            reads=("robustness_weight", "kl_reduction"),
            needs_teacher=False,
        ),
        Method(
            name="ard",
            paper="Goldblum et al., 2020",
            objective=CROSS_ENTROPY,
            start="uniform",
            loss=ard_loss,
            of_epoch=nothing_of_the_epoch,
            reads=_DISTILLATION,
        ),
        Method(
            name="iad",
            paper="Zhu et al., 2022",
            objective=CROSS_ENTROPY,
            start="uniform",
            loss=iad_loss,
            of_epoch=introspects,
            reads=_INTROSPECTION,
        ),
        Method(
            name="rslad",
            paper="Zi et al., 2021",
            objective=KL_TO_TEACHER_AT_NATURAL,
            start="gaussian",
            loss=rslad_loss,
            of_epoch=nothing_of_the_epoch,
            reads=_WEIGHTED_KL,
            options=MethodOptions(adversarial_weight=5 / 6),
            needs_labels=False,
        ),
        Method(
            name="akd",
            paper="Maroto et al., 2022",
            objective=CROSS_ENTROPY,
            start="uniform",
            loss=akd_loss,
            of_epoch=nothing_of_the_epoch,
            reads=("teacher_weight", "temperature", "kl_reduction"),
            options=MethodOptions(teacher_weight=0.5),
        ),
        Method(
            name="saad",
            paper="Lee and Chung, 2025",
            objective=KL_TO_LINEAR_TEACHER,
            start="gaussian",
            loss=saad_loss,
            of_epoch=igdm_weight,
            mean_over_images=False,
            reads=("entropy_scale", "renyi_order", "natural_weight", "clean_statistics", *_IGDM),
        ),
    )
}


def _learns_statistics(network: nn.Module) -> bool:
    return any(module.training and getattr(module, "running_mean", None) is not None for module in network.modules())


def get(name: str, **options: Any) -> Method:
    """The method called `name`, or `name+igdm` for it and IGDM's term, with its options changed where given.

    Raises ValueError for an unknown method or option.
    """
    base, plus, addition = name.partition("+")
    if base not in METHODS or (plus and addition not in ADDITIONS):
        known = ", ".join(METHODS)
        raise ValueError(f"unknown method {name!r}: choose one of {known}, or add to one, as in adaad+igdm")
    method = METHODS[base]
    return (ADDITIONS[addition](method) if plus else method).with_options(**options)


def with_igdm(method: Method) -> Method:
    """The row with IGDM's term on top; it needs a teacher. Raises ValueError where the row has the term already."""
    if "igdm_weight" in method.reads:
        raise ValueError(f"method {method.name} has IGDM's term already: leave out +igdm")
    return replace(
        method,
        name=f"{method.name}+igdm",
        loss=add_igdm(method.loss),
        of_epoch=lambda epoch, options: (method.of_epoch(epoch, options), igdm_weight(epoch, options)),
        reads=tuple(dict.fromkeys((*method.reads, "kl_reduction", *_IGDM))),
        needs_teacher=True,
    )


# What combines with any row by `+`; averaged and perturbed weights do too, and are the optimiser's (see OptimConfig).
ADDITIONS = {"igdm": with_igdm}
