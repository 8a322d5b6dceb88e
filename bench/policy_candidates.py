"""Candidates for a teacher policy: searches of K steps that ask the teacher in some of them.

AdaAD climbs kl(S, T), whose pixel gradient is J_S' g_S + J_T' g_T with the logit gradients g_S and g_T. A candidate has
a substitute for the teacher in the steps that do not ask it. All of them keep the answer at the last asked point x_0,
which costs one forward and one backward pass, and differ in what they assume in between:

    logits            T = T(x_0), J_T = 0
    stale             T = T(x_0), and the vector q = J_T' g_T of x_0 in place of its present value
    directional       J_T = g q' / g'g with g = g_T(x_0): the only row of J_T that is known
    difference        T = S + D(x_0) with D = T - S, and the vector r = J_D' g_T of x_0
    difference-rank-1 J_D = g r' / g'g; the student carries the curvature that both networks share
    difference-rank-2 the rows of J_D along the logit gradients of the last two asked points
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.inner.search import Search

NUM_STEPS = 10
TINY = 1e-12  # of a squared logit gradient, which is 0 where student and teacher agree


@dataclass(frozen=True)
class Answer:
    """Answer of the teacher at an asked point."""

    x: Tensor
    """The point [B, C, H, W]."""
    base: Tensor
    """T(x), or D(x) = T(x) - S(x) [B, N]."""
    gradient: Tensor
    """g_T at x [B, N]."""
    row: Tensor
    """J' g_T [B, C, H, W], of J_T or J_D."""


def kl_gradients(student_logits: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradients [B, N] of kl(S, T) with respect to both logits."""
    _, grad_student, grad_teacher = ops.kl_grad(student_logits, teacher_logits)
    return grad_student, grad_teacher


def ask(search: Search, x: Tensor, of_difference: bool) -> tuple[Answer, Tensor]:
    """Returns the teacher's answer at x, and the exact pixel gradient [B, C, H, W]."""
    (student, pull_student), (teacher, pull_teacher) = (search.evaluate(network, x) for network in search.networks)
    grad_student, grad_teacher = kl_gradients(student, teacher)
    row = pull_teacher(grad_teacher)
    gradient = pull_student(grad_student, retain_graph=of_difference) + row
    if of_difference:
        row = row - pull_student(grad_teacher)
    return Answer(x.clone(), teacher - student if of_difference else teacher, grad_teacher, row), gradient


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Inner product of each image [B, 1]."""
    return (first * second).flatten(1).sum(dim=1, keepdim=True)


def scaled(row: Tensor, factor: Tensor) -> Tensor:
    """Multiplies [B, C, H, W] by [B, 1]."""
    return row * factor[:, :, None, None]


@dataclass(frozen=True)
class Substitute:
    """The teacher between two asked points, by a linear model of rank `rank` of T, or of the difference T - S."""

    of_difference: bool
    rank: int
    """Asked points whose rows make up the Jacobian; 0: its product with g_T stays as it was at the last point."""
    keeps_row: bool = True
    """False: the Jacobian is zero."""

    def gradient(self, search: Search, x: Tensor, answers: Sequence[Answer]) -> Tensor:
        """Returns the pixel gradient [B, C, H, W] at x without the teacher."""
        last, known = answers[-1], orthogonal(answers[-self.rank :]) if self.rank else []
        student, pull_student = search.evaluate(search.student, x)
        teacher = last.base + (student if self.of_difference else 0)
        for direction, row in known:
            teacher = teacher + direction * dot(row, x - last.x) / (dot(direction, direction) + TINY)
        grad_student, grad_teacher = kl_gradients(student, teacher)
        gradient = pull_student(grad_student + grad_teacher if self.of_difference else grad_student)
        if not self.keeps_row:
            return gradient
        if not known:
            return gradient + last.row
        factors = [dot(direction, grad_teacher) / (dot(direction, direction) + TINY) for direction, _ in known]
        return sum((scaled(row, factor) for (_, row), factor in zip(known, factors, strict=True)), start=gradient)


def orthogonal(answers: Sequence[Answer]) -> list[tuple[Tensor, Tensor]]:
    """Returns orthogonal directions [B, N] of the logits and the rows J'd [B, C, H, W], those of the last point first.

    The Jacobian changes from point to point, so the earlier rows only fill in what the last one does not say.
    """
    known: list[tuple[Tensor, Tensor]] = []
    for answer in reversed(answers):
        direction, row = answer.gradient, answer.row
        for other, other_row in known:
            factor = dot(other, direction) / (dot(other, other) + TINY)
            direction, row = direction - factor * other, row - scaled(other_row, factor)
        known.append((direction, row))
    return known


SUBSTITUTES = {
    "logits": Substitute(of_difference=False, rank=0, keeps_row=False),
    "stale": Substitute(of_difference=False, rank=0),
    "directional": Substitute(of_difference=False, rank=1),
    "difference": Substitute(of_difference=True, rank=0),
    "difference-rank-1": Substitute(of_difference=True, rank=1),
    "difference-rank-2": Substitute(of_difference=True, rank=2),
}


def sparse(substitute: str, asked: Sequence[int], sizes: Sequence[float] = (1.0,) * NUM_STEPS) -> "Candidate":
    """Steps of the given sizes, in units of the recipe's, that ask the teacher in the steps `asked`, the first 0."""

    def run(search: Search, x_adv: Tensor) -> None:
        model, answers = SUBSTITUTES[substitute], []
        for step, size in enumerate(sizes):
            if step in asked:
                answer, gradient = ask(search, x_adv, model.of_difference)
                answers.append(answer)
            else:
                gradient = model.gradient(search, x_adv, answers)
            replace(search, step_factor=size).step_(x_adv, [gradient])

    shrinking = "" if len(set(sizes)) == 1 else f" of {numbers(sizes)}"
    kind = substitute + (", shrinking steps" if shrinking else "")
    return Candidate(f"{substitute} at {numbers(asked)}{shrinking}", kind, len(asked), len(sizes), run)


def numbers(values: Sequence[float]) -> str:
    """Text of a list of numbers."""
    return " ".join(f"{value:g}" for value in values)


def fewer(sizes: Sequence[float], momentum: float = 0.0) -> "Candidate":
    """Exact steps of the given sizes, in units of the recipe's; momentum as in MI-FGSM (Dong et al., 2018)."""

    def run(search: Search, x_adv: Tensor) -> None:
        velocity = torch.zeros_like(x_adv)
        for size in sizes:
            *_, parts = search.pixel_gradients(x_adv)
            gradient = torch.stack(parts).sum(dim=0)
            size_of = gradient.flatten(1).abs().mean(dim=1)[:, None, None, None] + TINY
            velocity = momentum * velocity + gradient / size_of
            replace(search, step_factor=size).step_(x_adv, [velocity])

    kind = "exact steps" + (", shrinking" if sizes[-1] < sizes[0] else "") + (", momentum" if momentum else "")
    return Candidate(f"exact steps of {numbers(sizes)}{', momentum' if momentum else ''}", kind, *[len(sizes)] * 2, run)


@dataclass(frozen=True)
class Candidate:
    """A search by name, in place on x_adv."""

    name: str
    kind: str
    """Name of its line in the picture."""
    teacher_passes: int
    """Forward and backward passes through the teacher."""
    student_passes: int
    """The same through the student."""
    run: Callable[[Search, Tensor], None]


EQUAL = (1.0,) * NUM_STEPS
EXACT = fewer(EQUAL)
ASKED = ((0,), (0, 5), (0, 7), (0, 3, 6), (0, 4, 8), (0, 3, 6, 9), (0, 2, 5, 8), (0, 2, 4, 6, 8))
# Steps that shrink: long ones reach the border of the ball, short ones end the zigzag of the sign along it.
SHRINKING = ((4, 0.5), (3, 1), (3, 1.5, 0.75), (3, 1.5, 1, 0.5), (3, 2, 1, 0.5, 0.25), (1,) * 8 + (0.5, 0.25))
CANDIDATES = (
    *[sparse(name, asked) for name, model in SUBSTITUTES.items() for asked in ASKED if len(asked) >= model.rank],
    *[sparse(name, (0, 4, 8), (*(1,) * 7, 0.5, 0.5, 0.25)) for name in ("stale", "directional", "difference-rank-1")],
    *[sparse(name, (0, 2, 4), (2, 1, 1, 0.5, 0.5, 0.25)) for name in ("stale", "difference-rank-1")],
    *[sparse(name, (0, 2, 4, 6), (2, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25)) for name in ("stale", "difference-rank-1")],
    *[fewer(sizes) for sizes in ((4.0,), (3, 3), (2, 2, 2), (2,) * 4, (2,) * 5)],
    *[fewer(sizes) for sizes in SHRINKING],
    *[fewer(sizes, 0.5) for sizes in SHRINKING[2:4]],
)
