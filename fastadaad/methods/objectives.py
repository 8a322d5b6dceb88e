"""Objectives that the inner loop maximises.

An objective never builds an autograd graph of its own: it turns logits into the gradients of its value with respect to
these logits, which then seed the one backward pass to the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad import ops
from fastadaad.methods.outer_batch import are_soft

# One tensor [B, N] per function that is evaluated at x_adv, the student's first; gradients in the same order.
Logits = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class InnerObjective:
    """A value per image, maximised over x_adv.

    If the method's row sets `through_teacher`, both networks are evaluated at x_adv, otherwise the student alone.
    """

    fixed_target: Callable[[nn.Module, nn.Module | None, Tensor, Tensor | None], Any]
    """(student, teacher, x_natural, labels) -> target, a value that stays the same in all steps, or None."""
    logit_gradients: Callable[[Logits, Any], tuple[Tensor, Logits]]
    """(logits, target) -> the value [B], and its gradient with respect to each of the logits."""
    surrogate: Callable[[Tensor, Any], Tensor] | None = None
    """(x_adv, target) -> further logits [B, N] at x_adv, differentiable, that replace the teacher's."""
    teacher_logits_natural: Callable[[Any], Tensor] | None = None
    """target -> T(x_natural) [B, N], if the target contains them: the outer loss then reuses them."""


def _no_target(student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None) -> None:
    return None


def _labels(student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None) -> Tensor | None:
    return labels


def _labels_or_logits(
    student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None
) -> Tensor | None:
    """Class numbers [B], or the logits [B, N] of label distributions."""
    return labels.float().log() if labels is not None and are_soft(labels) else labels


def _student_at_natural(
    student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None
) -> Tensor:
    return student(x_natural)


def _teacher_at_natural(
    student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None
) -> Tensor:
    assert teacher is not None
    return teacher(x_natural)


def _identity(target: Tensor) -> Tensor:
    return target


def kl_of_both(logits: Logits, target: Any) -> tuple[Tensor, Logits]:
    """kl(S(x_adv), T(x_adv)) [B] and its gradients with respect to both logits."""
    student_logits, teacher_logits = logits
    kl, grad_student_logits, grad_teacher_logits = ops.kl_grad(student_logits, teacher_logits)
    return kl, (grad_student_logits, grad_teacher_logits)


def _kl_to_target(logits: Logits, target: Tensor) -> tuple[Tensor, Logits]:
    (student_logits,) = logits
    kl, grad_student_logits, _ = ops.kl_grad(student_logits, target)
    return kl, (grad_student_logits,)


def _cross_entropy(logits: Logits, target: Tensor) -> tuple[Tensor, Logits]:
    """Cross-entropy to class numbers [B], or to distributions by their logits [B, N].

    The cross-entropy to a distribution is the kl to it plus its entropy, so both have the same gradient.
    """
    (student_logits,) = logits
    if not are_soft(target):
        loss, grad_student_logits = ops.cross_entropy_grad(student_logits, target)
        return loss, (grad_student_logits,)
    kl, gradients = _kl_to_target(logits, target)
    return kl + torch.special.entr(target.exp()).sum(dim=1), gradients


def _targeted_cross_entropy(logits: Logits, targets: Tensor) -> tuple[Tensor, Logits]:
    (student_logits,) = logits
    loss, grad_student_logits = ops.cross_entropy_grad(student_logits, targets)
    return -loss, (-grad_student_logits,)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """max_{j != y} z_j - z_y [B] of logits [B, N]: positive if the image is misclassified.

    The class y is masked by -inf and not by a factor of 0, so that adding a constant to all logits changes nothing.
    """
    is_label = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    others = logits.masked_fill(is_label, -torch.inf).amax(dim=1)
    return others - logits.gather(1, labels[:, None]).squeeze(1)


def strongest_rival(logits: Tensor, labels: Tensor) -> Tensor:
    """Class other than the label with the largest of logits [B, N], as int64 [B, 1]."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(dim=1, keepdim=True)


def _margin(logits: Logits, labels: Tensor) -> tuple[Tensor, Logits]:
    (student_logits,) = logits
    rival = strongest_rival(student_logits, labels)
    gradient = torch.zeros_like(student_logits).scatter_(1, rival, 1.0).scatter_(1, labels[:, None], -1.0)
    return margin(student_logits, labels), (gradient,)


# kl(S(x_adv), T(x_adv)), differentiated through both: AdaAD (CVPR 2023).
KL_TO_TEACHER = InnerObjective(fixed_target=_no_target, logit_gradients=kl_of_both)
# kl(S(x_adv), T(x_natural)): RSLAD (Zi et al., 2021).
KL_TO_TEACHER_AT_NATURAL = InnerObjective(
    fixed_target=_teacher_at_natural, logit_gradients=_kl_to_target, teacher_logits_natural=_identity
)
# kl(S(x_adv), S(x_natural)): TRADES (Zhang et al., 2019).
KL_TO_STUDENT_AT_NATURAL = InnerObjective(fixed_target=_student_at_natural, logit_gradients=_kl_to_target)
# CE(S(x_adv), y): PGD-AT (Madry et al., 2018), and the methods that start from it.
CROSS_ENTROPY = InnerObjective(fixed_target=_labels_or_logits, logit_gradients=_cross_entropy)
# -CE(S(x_adv), t), with the target classes t in place of the labels: targeted attacks, for evaluation.
TARGETED_CROSS_ENTROPY = InnerObjective(fixed_target=_labels, logit_gradients=_targeted_cross_entropy)
# max_{j != y} z_j - z_y: the objective of Carlini and Wagner (2017), for evaluation.
MARGIN = InnerObjective(fixed_target=_labels, logit_gradients=_margin)
