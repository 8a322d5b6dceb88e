"""What the inner loop maximises.

An objective never builds an autograd graph of its own: it turns logits into the gradients of its value with respect to
those logits, which then seed the one backward pass to the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastadaad import ops

# One tensor [B, N] per network that the objective evaluates at x_adv, the student's first; gradients likewise.
Logits = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class InnerObjective:
    """A value per image, maximised over x_adv.

    through_teacher: the teacher is evaluated at x_adv too, and the gradient goes through it.
    fixed_target(student, teacher, x_natural, labels): what stays the same in all steps, or None.
    logit_gradients(logits, target): the value [B] and its gradient with respect to each of the logits.
    """

    through_teacher: bool
    fixed_target: Callable[[nn.Module, nn.Module | None, Tensor, Tensor | None], Any]
    logit_gradients: Callable[[Logits, Any], tuple[Tensor, Logits]]


def _no_target(student, teacher, x_natural, labels):
    return None


def _kl_to_teacher(logits: Logits, target: None) -> tuple[Tensor, Logits]:
    student_logits, teacher_logits = logits
    kl, grad_student_logits, grad_teacher_logits = ops.kl_grad(student_logits, teacher_logits)
    return kl, (grad_student_logits, grad_teacher_logits)


def _labels(student, teacher, x_natural, labels):
    if labels is None:
        raise ValueError("labels are missing: the cross-entropy of this method's inner loop needs them")
    return labels


def _cross_entropy(logits: Logits, labels: Tensor) -> tuple[Tensor, Logits]:
    (student_logits,) = logits
    loss, grad_student_logits = ops.cross_entropy_grad(student_logits, labels)
    return loss, (grad_student_logits,)


# kl(S(x_adv), T(x_adv)), differentiated through both: AdaAD (CVPR 2023).
KL_TO_TEACHER = InnerObjective(through_teacher=True, fixed_target=_no_target, logit_gradients=_kl_to_teacher)
CROSS_ENTROPY = InnerObjective(through_teacher=False, fixed_target=_labels, logit_gradients=_cross_entropy)
