"""Teacher policies: the steps in which the inner loop queries the teacher, and its substitute in the other steps.

A teacher that is much larger than its student takes nearly all of an inner step: WideResNet-34-20 takes 98 % of AdaAD's
step with ResNet-18. `exact` queries it in every step and is the paper. `refreshed` queries it at intervals, for its
logits and its part of the pixel gradient, and keeps both in between. `directional` also keeps the gradient of the kl
with respect to the teacher's logits: both gradients make up a linear model along it. `linearized` expands its most
likely logits to first order around the last point of a query, which costs a backward pass per class.

The outer loss evaluates the teacher at x_adv in any case, so the error of the substitute is known there for free.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastadaad.config import TeacherPolicy
from fastadaad.inner.search import Search


class Answer(NamedTuple):
    """State of `refreshed`: T(x) [B, N] and the teacher's part of the pixel gradient [B, C, H, W] at the last query."""

    teacher_logits: Tensor
    grad_x: Tensor


class Direction(NamedTuple):
    """State of `directional` at the last query x: T(x), the kl's gradient there, and its part of the pixel gradient."""

    x: Tensor
    """[B, C, H, W]."""
    teacher_logits: Tensor
    """T(x) [B, N]."""
    grad_logits: Tensor
    """g = d kl / d T [B, N]."""
    grad_x: Tensor
    """J'g [B, C, H, W], with J the Jacobian of T at x: the only row of J that one backward pass gives."""


class Expansion(NamedTuple):
    """State of `linearized`: T(x) [B, N] and the gradients [B, top, C, H, W] of its `classes` [B, top], at x."""

    x: Tensor
    teacher_logits: Tensor
    classes: Tensor
    gradients: Tensor


@dataclass(frozen=True, kw_only=True)
class PolicySteps:
    """The two kinds of inner step of a policy, both in place on x_adv."""

    query: Callable[[Search, Tensor], Any]
    """(search, x_adv) -> the state that later steps reuse. Queries the teacher."""
    reuse: Callable[[Search, Tensor, Any], None]
    """(search, x_adv, state): a step without the teacher."""
    teacher_logits: Callable[[Any, Tensor], Tensor]
    """(state, x_adv) -> the policy's approximation of T(x_adv) [B, N]."""


def query_exactly(search: Search, x_adv: Tensor) -> None:
    """Step along the exact gradient through student and teacher."""
    *_, gradients = search.pixel_gradients(x_adv)
    search.step_(x_adv, gradients)


def query_and_keep(search: Search, x_adv: Tensor) -> Answer:
    """Exact step that returns the teacher's logits and its part of the gradient."""
    logits, _, gradients = search.pixel_gradients(x_adv)
    search.step_(x_adv, gradients)
    return Answer(logits[1], gradients[1])


def reuse_answer(search: Search, x_adv: Tensor, answer: Answer) -> None:
    """Step with the teacher's logits and gradient of the last query."""
    student_logits, pull_back = search.evaluate(search.student, x_adv)
    _, gradients = search.objective.logit_gradients((student_logits, answer.teacher_logits), search.target)
    search.step_(x_adv, [pull_back(gradients[0]), answer.grad_x])


def query_and_keep_direction(search: Search, x_adv: Tensor) -> Direction:
    """Exact step that returns the teacher's answer along the gradient of the kl."""
    logits, logit_gradients, gradients = search.pixel_gradients(x_adv)
    # x_adv is a buffer that the projected step overwrites.
    direction = Direction(x_adv.clone(), logits[1], logit_gradients[1], gradients[1])
    search.step_(x_adv, gradients)
    return direction


def reuse_direction(search: Search, x_adv: Tensor, direction: Direction) -> None:
    """Step with the linear model in place of the teacher.

    `refreshed` adds the kept pixel gradient as it is. Once the student nearly agrees with the teacher, the gradient of
    the kl changes its length and its sign within a few steps: here the kept one is scaled by the share of the present
    gradient along it.
    """
    student_logits, pull_back = search.evaluate(search.student, x_adv)
    logits = (student_logits, directional_logits(direction, x_adv))
    _, (grad_student, grad_teacher) = search.objective.logit_gradients(logits, search.target)
    share = _dot(direction.grad_logits, grad_teacher) / _square(direction.grad_logits)
    search.step_(x_adv, [pull_back(grad_student), direction.grad_x * share[:, :, None, None]])


def directional_logits(direction: Direction, x_adv: Tensor) -> Tensor:
    """T(x_adv) [B, N] by the linear model, which changes along the gradient of the kl only."""
    change = _dot(direction.grad_x, x_adv - direction.x) / _square(direction.grad_logits)
    return direction.teacher_logits + direction.grad_logits * change


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each image's tensors, [B, 1]."""
    return (first * second).flatten(1).sum(dim=1, keepdim=True)


def _square(gradient: Tensor) -> Tensor:
    """Squared length [B, 1], above 0 where student and teacher agree and the gradient vanishes."""
    return _dot(gradient, gradient).clamp(min=torch.finfo(torch.float32).tiny)


def expand(search: Search, teacher: nn.Module, x: Tensor) -> Expansion:
    """Expands the teacher's `top` most likely logits to first order around x, by one backward pass for each."""
    teacher_logits, pull_back = search.evaluate(teacher, x)
    classes = teacher_logits.topk(min(search.top, teacher_logits.shape[1]), dim=1).indices
    rows = []
    for rank, column in enumerate(classes.split(1, dim=1), start=1):
        one_hot = torch.zeros_like(teacher_logits).scatter(1, column, 1.0)
        rows.append(pull_back(one_hot, retain_graph=rank < classes.shape[1]))
    # x is a buffer that the projected step overwrites.
    return Expansion(x.clone(), teacher_logits, classes, torch.stack(rows, dim=1))


def expanded_logits(x_adv: Tensor, expansion: Expansion) -> Tensor:
    """T(x_adv) [B, N] by the expansion; logits of classes outside it stay as they were at the query."""
    change = torch.einsum("bkchw,bchw->bk", expansion.gradients, x_adv - expansion.x)
    return expansion.teacher_logits.scatter_add(1, expansion.classes, change)


def query_and_expand(search: Search, x_adv: Tensor) -> Expansion:
    """Expands the teacher at x_adv, and takes a step by the expansion."""
    expansion = expand(search, search.networks[1], x_adv)
    reuse_expansion(search, x_adv, expansion)
    return expansion


def reuse_expansion(search: Search, x_adv: Tensor, expansion: Expansion) -> None:
    """Step with the expansion in place of the teacher."""
    objective = replace(search.objective, surrogate=lambda x, _: expanded_logits(x, expansion))
    *_, gradients = replace(search, networks=(search.student,), objective=objective).pixel_gradients(x_adv)
    search.step_(x_adv, gradients)


def never_reused(*arguments: Any) -> Any:
    """Placeholder for steps that policy exact does not have."""
    raise AssertionError("policy exact queries the teacher in every step")


POLICIES = {
    "exact": PolicySteps(query=query_exactly, reuse=never_reused, teacher_logits=never_reused),
    "refreshed": PolicySteps(
        query=query_and_keep, reuse=reuse_answer, teacher_logits=lambda answer, x_adv: answer.teacher_logits
    ),
    "directional": PolicySteps(
        query=query_and_keep_direction, reuse=reuse_direction, teacher_logits=directional_logits
    ),
    "linearized": PolicySteps(
        query=query_and_expand,
        reuse=reuse_expansion,
        teacher_logits=lambda expansion, x_adv: expanded_logits(x_adv, expansion),
    ),
}


def first_interval(policy: TeacherPolicy, num_steps: int) -> int:
    """Number of inner steps between two queries of the teacher at the beginning of a training."""
    if policy.kind == "exact":
        return 1
    return num_steps if policy.every is None else policy.every
