"""Table of methods: inner objective, start of the search and outer loss of each.

A method is a row. A new row names an inner objective (methods/objectives.py), an outer loss (methods/losses.py) and the
options that the loss reads (methods/options.py); docs/methods.md has an example. The rows of this table name their
functions as strings, so that recipes and the command line can read it without importing torch.
"""

import difflib
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from fastadaad.config import Start
from fastadaad.methods.options import MethodOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastadaad.methods.objectives import InnerObjective
    from fastadaad.methods.outer_batch import OuterBatch

    Loss = Callable[[OuterBatch, MethodOptions], Tensor]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table.

    `objective`, `loss` and `added_terms` are objects, or names of objects in fastadaad.methods such as
    `losses.adaad_loss`, which resolved() imports.
    """

    name: str
    objective: "InnerObjective | str"
    """Value that the inner loop maximises."""
    through_teacher: bool = False
    """The inner loop evaluates the teacher at x_adv too, and differentiates through it."""
    start: Start
    loss: "Loss | str"
    """Outer loss, a function of (OuterBatch, MethodOptions)."""
    added_terms: tuple[str, ...] = ()
    """Functions that add a term to the loss: loss -> loss."""
    reads: tuple[str, ...] = ()
    """Names of the options that the loss reads. The method accepts no other options."""
    options: MethodOptions = field(default_factory=MethodOptions)
    needs_teacher: bool = True
    needs_labels: bool = True
    takes_soft_labels: bool = False
    """Labels may be distributions [B, N]: objective and loss are linear in the one-hot label."""
    epoch_keys: tuple[Callable[[MethodOptions, int], Hashable], ...] | None = None
    """Functions of (options, epoch) whose values are all that the loss reads of the epoch; None: the epoch itself.

    A CUDA graph is captured again when one of the values changes.
    """
    supports_micro_batch: bool = True
    """The loss is a mean of one value per image that does not depend on the other images of the batch."""
    paper: str = ""

    def resolved(self) -> "Method":
        """Returns the row with its objective and its loss as objects."""
        loss = _object(self.loss)
        for term in self.added_terms:
            loss = _object(term)(loss)
        return replace(self, objective=_object(self.objective), loss=loss, added_terms=())

    def epoch_key(self, epoch: int) -> Hashable:
        """Returns the part of the epoch that the loss depends on."""
        if self.epoch_keys is None:
            return epoch
        return tuple(key(self.options, epoch) for key in self.epoch_keys)

    def require_teacher(self, teacher: "nn.Module | None") -> None:
        """Raises ValueError if the method needs a teacher and `teacher` is None."""
        if self.needs_teacher and teacher is None:
            raise ValueError(f"teacher is None: method {self.name} needs one")

    def require_labels(self, labels: "Tensor | None") -> None:
        """Raises ValueError if the method needs labels and `labels` is None, or distributions that it cannot take."""
        from fastadaad.methods.outer_batch import are_soft

        if self.needs_labels and labels is None:
            raise ValueError(f"labels are missing: method {self.name} needs them")
        if self.needs_labels and are_soft(labels) and not self.takes_soft_labels:
            raise ValueError(
                f"labels are distributions [B, N]: method {self.name} needs the class of each image, "
                "give class numbers [B], such as labels.argmax(1)"
            )

    def check_micro_batch(self, micro_batch: int | None) -> None:
        """Raises ValueError for an empty micro-batch, and if the loss depends on the batch as a whole."""
        if micro_batch is not None and micro_batch < 1:
            raise ValueError(f"micro_batch is {micro_batch}: it must be 1 or more, or left out")
        if micro_batch is not None and not self.supports_micro_batch:
            raise ValueError(
                f"method {self.name} normalises its weights over the batch and does not support micro_batch: leave it "
                "out"
            )

    def with_options(self, **options: Any) -> "Method":
        """Returns the row with some options changed.

        Raises:
            ValueError: The loss does not read one of the options, or a value is invalid.
        """
        for option in options:
            if option not in self.reads:
                known = ", ".join(self.reads) or "none"
                raise ValueError(f"method {self.name} has no option {option!r}: its options are {known}")
        changed = replace(self, options=replace(self.options, **options))
        if "natural-introspective" in changed.options.statistics and "introspection_begin" not in self.reads:
            raise ValueError(f"method {self.name} has no introspection: list natural in statistics instead")
        return changed

    def outer_loss(
        self,
        student: "nn.Module",
        teacher: "nn.Module | None",
        x_natural: "Tensor",
        x_adv: "Tensor",
        labels: "Tensor | None" = None,
        epoch: int = 0,
        *,
        teacher_logits_natural: "Tensor | None" = None,
    ) -> "Tensor":
        """Computes the loss of `student` at x_adv, a scalar with gradient.

        Args:
            student: Network to train, in train mode.
            teacher: Teacher in eval mode, or None for a method without one.
            x_natural: Natural images [B, C, H, W] in [0, 1].
            x_adv: Adversarial images, same shape.
            labels: Class numbers [B], or None for a method without labels. Rows with `takes_soft_labels` take label
                distributions too, floats [B, N].
            epoch: Current epoch, for losses that depend on it.
            teacher_logits_natural: T(x_natural) [B, N] if known, which saves a forward pass.

        Raises:
            ValueError: The method needs a teacher or labels and gets None, or the teacher is in train mode.
        """
        from fastadaad.methods.outer_batch import OuterBatch, listed_passes, outer_loss
        from fastadaad.runtime.batch_norm import learns_statistics

        self.require_teacher(teacher)
        self.require_labels(labels)
        if self.needs_teacher and teacher is not None and learns_statistics(teacher):
            raise ValueError("teacher is in train mode and its batch-norm would learn: call teacher.eval()")
        batch = OuterBatch(
            student=student,
            teacher=teacher,
            x_natural=x_natural,
            x_adv=x_adv,
            labels=labels,
            epoch=epoch,
            logits={} if teacher_logits_natural is None else {"teacher_logits_natural": teacher_logits_natural},
            passes=listed_passes(self.options, student, epoch),
        )
        return outer_loss(self.resolved().loss, batch, self.options)  # type: ignore[arg-type]


def _object(given: Any) -> Any:
    """Returns an object of fastadaad.methods by its name; anything but a string is returned unchanged."""
    if not isinstance(given, str):
        return given
    # By import statements, which torch.compile traces; it refuses importlib and pkgutil.
    import fastadaad.methods.igdm
    import fastadaad.methods.losses
    import fastadaad.methods.objectives
    import fastadaad.methods.saad

    return attrgetter(given)(fastadaad.methods)


_DISTILLATION = ("teacher_weight", "temperature", "kl_reduction", "clean_statistics")
_INTROSPECTION = (*_DISTILLATION, "introspection_begin", "introspection_power", "introspective_teacher_term")
_IGDM = ("igdm_weight", "igdm_ramp_epochs")
_WEIGHTED_KL = ("adversarial_weight", "kl_reduction", "clean_statistics")

# Options of every row, which the loss itself does not read.
EVERY_ROW = ("statistics", "loss_scale")


def _row(*, reads: tuple[str, ...] = (), **settings: Any) -> Method:
    return Method(reads=(*reads, *EVERY_ROW), **settings)


METHODS = {
    method.name: method
    for method in (
        _row(
            name="adaad",
            paper="Huang et al., CVPR 2023",
            objective="objectives.KL_TO_TEACHER",
            through_teacher=True,
            start="gaussian",
            loss="losses.adaad_loss",
            epoch_keys=(),
            reads=_WEIGHTED_KL,
            needs_labels=False,
        ),
        _row(
            name="adaiad",
            paper="Huang et al., CVPR 2023",
            objective="objectives.KL_TO_TEACHER",
            through_teacher=True,
            start="gaussian",
            loss="losses.adaiad_loss",
            epoch_keys=(MethodOptions.introspects,),
            reads=_INTROSPECTION,
        ),
        _row(
            name="pgd-at",
            paper="Madry et al., 2018",
            objective="objectives.CROSS_ENTROPY",
            start="uniform",
            loss="losses.pgd_at_loss",
            epoch_keys=(),
            needs_teacher=False,
            takes_soft_labels=True,
        ),
        _row(
            name="trades",
            paper="Zhang et al., 2019",
            objective="objectives.KL_TO_STUDENT_AT_NATURAL",
            start="gaussian",
            loss="losses.trades_loss",
            epoch_keys=(),
            reads=("robustness_weight", "kl_reduction"),
            needs_teacher=False,
            takes_soft_labels=True,
        ),
        _row(
            name="mart",
            paper="Wang et al., ICLR 2020",
            objective="objectives.CROSS_ENTROPY",
            start="gaussian",
            loss="losses.mart_loss",
            epoch_keys=(),
            reads=("robustness_weight", "kl_reduction"),
            options=MethodOptions(robustness_weight=5.0),
            needs_teacher=False,
        ),
        _row(
            name="lbgat-fixed",
            paper="after Cui et al., ICCV 2021",
            objective="objectives.KL_TO_STUDENT_AT_NATURAL",
            start="gaussian",
            loss="losses.lbgat_fixed_loss",
            epoch_keys=(),
            reads=("robustness_weight", "kl_reduction", "clean_statistics"),
            needs_labels=False,
        ),
        _row(
            name="ard",
            paper="Goldblum et al., 2020",
            objective="objectives.CROSS_ENTROPY",
            start="uniform",
            loss="losses.ard_loss",
            epoch_keys=(),
            reads=_DISTILLATION,
            takes_soft_labels=True,
        ),
        _row(
            name="iad",
            paper="Zhu et al., 2022",
            objective="objectives.CROSS_ENTROPY",
            start="uniform",
            loss="losses.iad_loss",
            epoch_keys=(MethodOptions.introspects,),
            reads=_INTROSPECTION,
        ),
        _row(
            name="rslad",
            paper="Zi et al., 2021",
            objective="objectives.KL_TO_TEACHER_AT_NATURAL",
            start="gaussian",
            loss="losses.rslad_loss",
            epoch_keys=(),
            reads=_WEIGHTED_KL,
            options=MethodOptions(adversarial_weight=5 / 6),
            needs_labels=False,
        ),
        _row(
            name="akd",
            paper="Maroto et al., 2022",
            objective="objectives.CROSS_ENTROPY",
            start="uniform",
            loss="losses.akd_loss",
            epoch_keys=(),
            reads=("teacher_weight", "temperature", "kl_reduction"),
            options=MethodOptions(teacher_weight=0.5),
            takes_soft_labels=True,
        ),
        _row(
            name="saad",
            paper="Lee and Chung, 2025",
            objective="saad.KL_TO_LINEAR_TEACHER",
            start="gaussian",
            loss="saad.saad_loss",
            epoch_keys=(MethodOptions.igdm_weight_in,),
            supports_micro_batch=False,
            reads=("entropy_scale", "renyi_order", "natural_weight", "clean_statistics", *_IGDM),
        ),
    )
}


def with_igdm(method: Method) -> Method:
    """Returns the row with IGDM's term added, which needs a teacher.

    Raises:
        ValueError: The row has the term already.
    """
    if "igdm_weight" in method.reads:
        raise ValueError(f"method {method.name} has IGDM's term already: leave out +igdm")
    keys = None if method.epoch_keys is None else (*method.epoch_keys, MethodOptions.igdm_weight_in)
    return replace(
        method,
        name=f"{method.name}+igdm",
        added_terms=(*method.added_terms, "igdm.add_igdm"),
        epoch_keys=keys,
        reads=tuple(dict.fromkeys((*method.reads, "kl_reduction", *_IGDM))),
        needs_teacher=True,
    )


# Additions to any row, as in `adaad+igdm`. Averaged and perturbed weights combine with any row too: see OptimConfig.
ADDITIONS = {"igdm": with_igdm}


def get(name: str, **options: Any) -> Method:
    """Returns a row of the table by name, with some options changed.

    Args:
        name: A name of METHODS, or `name+igdm` for the method with IGDM's term.
        **options: Options of the method by name, see MethodOptions.

    Raises:
        ValueError: Unknown method or option.
    """
    base, plus, addition = name.partition("+")
    if base not in METHODS or (plus and addition not in ADDITIONS):
        close = difflib.get_close_matches(base, METHODS, n=1) if not plus or addition in ADDITIONS else []
        choice = f"choose one of {', '.join(METHODS)}, or add to one, as in adaad+igdm"
        remedy = f"did you mean {close[0]}{plus}{addition}?" if close else choice
        raise ValueError(f"unknown method {name!r}: {remedy}")
    method = METHODS[base]
    return (ADDITIONS[addition](method) if plus else method).with_options(**options)
