"""What the inner loop maximises.

An objective never builds an autograd graph of its own: it turns logits into the gradients of its value with respect to
those logits, which then seed the one backward pass to the pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from fastadaad import ops

Gradients = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class InnerObjective:
    """A value per image, maximised over x_adv.

    through_teacher: the teacher is evaluated at x_adv too, and the gradient goes through it.
    fixed_target(student, teacher, x_natural, labels): what stays the same in all steps, or None.
    logit_gradients(logits, target): the value [B] and its gradient with respect to each of `logits`, which are those of
    the student and, where through_teacher, of the teacher.
    """

    through_teacher: bool
    fixed_target: Callable[[nn.Module, nn.Module | None, Tensor, Tensor | None], Tensor | None]
    logit_gradients: Callable[[Gradients, Tensor | None], tuple[Tensor, Gradients]]


def _no_target(student, teacher, x_natural, labels):
    return None


def _kl_to_teacher(logits: Gradients, target: None) -> tuple[Tensor, Gradients]:
    kl, *gradients = ops.kl_grad(*logits)
    return kl, tuple(gradients)


def _labels(student, teacher, x_natural, labels):
    if labels is None:
        raise ValueError("labels are missing: the cross-entropy of this method's inner loop needs them")
    return labels


def _cross_entropy(logits: Gradients, labels: Tensor) -> tuple[Tensor, Gradients]:
    loss, grad_student_logits = ops.cross_entropy_grad(*logits, labels)
    return loss, (grad_student_logits,)


# kl(S(x_adv), T(x_adv)), differentiated through both: AdaAD, equation 4 of the paper.
KL_TO_TEACHER = InnerObjective(through_teacher=True, fixed_target=_no_target, logit_gradients=_kl_to_teacher)
CROSS_ENTROPY = InnerObjective(through_teacher=False, fixed_target=_labels, logit_gradients=_cross_entropy)
