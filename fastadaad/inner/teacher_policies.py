"""How often the inner loop asks the teacher, and what stands in for it between.

A teacher that is much larger than its student is nearly all of an inner step: WideResNet-34-20 is 98 % of AdaAD's with
ResNet-18. `exact` asks it in every step and is the paper. `refreshed` asks it now and then, for its logits and for what
it adds to the pixel gradient, and keeps both in between. `linearized` expands its most likely logits to first order
around the last point where it was asked; this costs a backward pass per class.

The outer loss asks the teacher at x_adv in any case, so how far the stand-in was off there is known for free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastadaad.config import TeacherPolicy
from fastadaad.inner.step import Vjp, pixel_gradient, pixel_gradients
from fastadaad.methods.objectives import InnerObjective


class Answer(NamedTuple):
    """What `refreshed` keeps: T(x) [B, N], and the teacher's part of the pixel gradient [B, C, H, W], both as asked."""

    teacher_logits: Tensor
    grad_x: Tensor


class Expansion(NamedTuple):
    """What `linearized` keeps: T(x) [B, N] and the gradients [B, top, C, H, W] of its `classes` [B, top], at x."""

    x: Tensor
    teacher_logits: Tensor
    classes: Tensor
    gradients: Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherUse:
    """A policy at work on one inner step.

    ask(vjp, networks, objective, x_adv, target, top): the pixel gradient, and what is kept of the teacher.
    reuse(vjp, student, objective, x_adv, target, kept): the pixel gradient without the teacher.
    teacher_logits(kept, x_adv): what the policy takes for T(x_adv) [B, N].
    """

    ask: Callable[..., tuple[Tensor, Any]]
    reuse: Callable[..., Tensor]
    teacher_logits: Callable[[Any, Tensor], Tensor]


def ask_exactly(
    vjp: Vjp, networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any, top: int
) -> tuple[Tensor, None]:
    return pixel_gradient(vjp, networks, objective, x_adv, target), None


def ask_and_keep(
    vjp: Vjp, networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any, top: int
) -> tuple[Tensor, Answer]:
    logits, (student_part, teacher_part) = pixel_gradients(vjp, networks, objective, x_adv, target)
    return student_part + teacher_part, Answer(logits[1], teacher_part)


def reuse_answer(
    vjp: Vjp, student: nn.Module, objective: InnerObjective, x_adv: Tensor, target: Any, kept: Answer
) -> Tensor:
    student_logits, pull_back = vjp(student, x_adv)
    _, gradients = objective.logit_gradients((student_logits, kept.teacher_logits), target)
    return pull_back(gradients[0]) + kept.grad_x


def expand(vjp: Vjp, teacher: nn.Module, x: Tensor, top: int) -> Expansion:
    """The teacher's `top` most likely logits to first order around x, by one backward pass for each."""
    teacher_logits, pull_back = vjp(teacher, x)
    classes = teacher_logits.topk(min(top, teacher_logits.shape[1]), dim=1).indices
    rows = []
    for rank, column in enumerate(classes.split(1, dim=1), start=1):
        one_hot = torch.zeros_like(teacher_logits).scatter(1, column, 1.0)
        rows.append(pull_back(one_hot, retain_graph=rank < classes.shape[1]))
    # x is a buffer that the projected step overwrites.
    return Expansion(x.clone(), teacher_logits, classes, torch.stack(rows, dim=1))


def expanded_logits(x_adv: Tensor, kept: Expansion) -> Tensor:
    """T(x_adv) [B, N] by the expansion; classes outside it stay as they were."""
    change = torch.einsum("bkchw,bchw->bk", kept.gradients, x_adv - kept.x)
    return kept.teacher_logits.scatter_add(1, kept.classes, change)


def ask_and_expand(
    vjp: Vjp, networks: Sequence[nn.Module], objective: InnerObjective, x_adv: Tensor, target: Any, top: int
) -> tuple[Tensor, Expansion]:
    student, teacher = networks
    kept = expand(vjp, teacher, x_adv, top)
    return reuse_expansion(vjp, student, objective, x_adv, target, kept), kept


def reuse_expansion(
    vjp: Vjp, student: nn.Module, objective: InnerObjective, x_adv: Tensor, target: Any, kept: Expansion
) -> Tensor:
    expanded = replace(objective, surrogate=lambda x, _: expanded_logits(x, kept))
    return pixel_gradient(vjp, (student,), expanded, x_adv, target)


def never_reused(*arguments: Any) -> Tensor:
    raise AssertionError("policy exact asks the teacher in every step")


USES = {
    "exact": TeacherUse(ask=ask_exactly, reuse=never_reused, teacher_logits=never_reused),
    "refreshed": TeacherUse(
        ask=ask_and_keep, reuse=reuse_answer, teacher_logits=lambda kept, x_adv: kept.teacher_logits
    ),
    "linearized": TeacherUse(
        ask=ask_and_expand, reuse=reuse_expansion, teacher_logits=lambda kept, x_adv: expanded_logits(x_adv, kept)
    ),
}


def first_interval(policy: TeacherPolicy, num_steps: int) -> int:
    """Steps from one answer of the teacher to the next, at the beginning of a training."""
    if policy.kind == "exact":
        return 1
    return num_steps if policy.every is None else policy.every
