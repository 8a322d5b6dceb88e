"""Training step of each method as in its authors' program, in plain torch: the baseline of `fastadaad benchmark`.

The mathematics of `Distiller` in plain torch. The inner loop uses autograd through torch's losses with unfrozen
networks, so that each inner step keeps activations for weight gradients that nothing reads. After the loop the student
runs on the program's points in the program's order, in train mode: passes whose logits the loss does not use still
change batch-norm's running statistics, and Distiller makes the same ones (option `statistics`). Each function names the
other passes that the program repeats. Two choices follow fastadaad instead of the programs, as they change the result:
the student is in eval mode during the inner loop, and the uniform start is clipped.

In the formulas S and T are the logits of student and teacher, y the labels, tau the temperature.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad.config import InnerConfig

GAUSSIAN_START_SCALE = 0.001
ADAAD_WEIGHT = 1.0  # lambda
RSLAD_WEIGHT = 5 / 6
TEACHER_WEIGHT = 1.0  # a
AKD_TEACHER_WEIGHT = 0.5
TEMPERATURE = 30.0  # tau
ROBUSTNESS_WEIGHT = 6.0  # beta of TRADES and LBGAT
MART_WEIGHT = 5.0  # lambda of MART
INTROSPECTION_POWER = 0.1  # b
ENTROPY_SCALE = 5.0  # scale of SAAD's weights


@dataclass(kw_only=True)
class Batch:
    """Inputs of one step: both networks, x_natural fp32 [B, C, H, W] and labels [B]."""

    student: nn.Module
    teacher: nn.Module
    x_natural: Tensor
    labels: Tensor

    @cached_property
    def teacher_logits_natural(self) -> Tensor:
        """T(x_natural) [B, N], without gradient, computed at most once per step."""
        return self.teacher_logits(self.x_natural)

    @cached_property
    def linear_teacher(self) -> tuple[Tensor, Tensor]:
        """T(x_natural) [B, N] and the gradient of the label's logit to the pixels, computed at most once per step."""
        x = self.x_natural.clone().requires_grad_()
        logits = self.teacher(x)
        label_logits = logits[torch.arange(len(logits)), self.labels]
        return logits.detach(), torch.autograd.grad(label_logits.sum(), x)[0]

    def teacher_logits(self, x: Tensor) -> Tensor:
        """T(x) [B, N], without gradient."""
        with torch.no_grad():
            return self.teacher(x)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Program of one method.

    Args:
        start: start(x_natural, epsilon) returns x_adv before the first step.
        inner_value: inner_value(batch, x_adv) returns the scalar that the inner loop maximises.
        outer_loss: outer_loss(batch, x_adv) returns the scalar that the student minimises.
        options: Options of methods.get() with which `Distiller` computes the same.
    """

    start: Callable[[Tensor, float], Tensor]
    inner_value: Callable[[Batch, Tensor], Tensor]
    outer_loss: Callable[[Batch, Tensor], Tensor]
    options: Mapping[str, object] = field(default_factory=dict)


def reference_step(
    reference: Reference,
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_natural: Tensor,
    labels: Tensor,
    *,
    inner: InnerConfig,
) -> Tensor:
    """Runs one training step in the l_inf ball; updates the student and returns the loss, a scalar.

    Args:
        reference: Program of the method.
        student: The network that is trained.
        teacher: The teacher.
        optimizer: Optimizer of the student.
        x_natural: fp32 [B, C, H, W], pixels in [0, 1].
        labels: int64 [B].
        inner: Configuration of the inner loop.
    """
    batch = Batch(student=student, teacher=teacher, x_natural=x_natural, labels=labels)
    x_adv = reference_inner_loop(reference, batch, inner)
    optimizer.zero_grad()
    loss = reference.outer_loss(batch, x_adv)
    loss.backward()
    optimizer.step()
    return loss.detach()


def reference_inner_loop(reference: Reference, batch: Batch, inner: InnerConfig) -> Tensor:
    """Returns x_adv, fp32 [B, C, H, W]; leaves the student in train mode, as the programs do."""
    batch.student.eval()
    batch.teacher.eval()
    epsilon, x_natural = inner.threat_model.epsilon, batch.x_natural
    x_adv = reference.start(x_natural, epsilon)
    for _ in range(inner.num_steps):
        x_adv.requires_grad_()
        (grad_x,) = torch.autograd.grad(reference.inner_value(batch, x_adv), [x_adv])
        x_adv = x_adv.detach() + inner.step_size * torch.sign(grad_x.detach())
        x_adv = torch.min(torch.max(x_adv, x_natural - epsilon), x_natural + epsilon)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    batch.student.train()
    return x_adv.detach()


def gaussian_start(x_natural: Tensor, epsilon: float) -> Tensor:
    """Adds Gaussian noise of scale 0.001; unclipped."""
    return x_natural.detach() + GAUSSIAN_START_SCALE * torch.randn(x_natural.shape, device=x_natural.device)


def uniform_start(x_natural: Tensor, epsilon: float) -> Tensor:
    """Adds uniform noise of the ball, clipped to admissible pixels."""
    noise = torch.empty_like(x_natural).uniform_(-1, 1)
    return torch.clamp(x_natural.detach() + epsilon * noise, 0.0, 1.0)


def kl_terms(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """q (log q - log p) per image and class, [B, N]; p: student probabilities, q: teacher probabilities."""
    return F.kl_div(F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1), reduction="none")


def kl_mean(student_logits: Tensor, teacher_logits: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean kl over the images, each weighted by `weight` [B]."""
    return (weight * kl_terms(student_logits, teacher_logits).sum(dim=1)).mean()


def softened_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """tau^2 kl_tau."""
    return TEMPERATURE**2 * kl_mean(student_logits / TEMPERATURE, teacher_logits / TEMPERATURE)


def kl_to_teacher(batch: Batch, x_adv: Tensor) -> Tensor:
    """kl(S(x_adv), T(x_adv)), with gradient through both."""
    return kl_terms(batch.student(x_adv), batch.teacher(x_adv)).sum()


def kl_to_teacher_at_natural(batch: Batch, x_adv: Tensor) -> Tensor:
    """kl(S(x_adv), T(x_natural))."""
    return kl_terms(batch.student(x_adv), batch.teacher_logits_natural).sum()


def kl_to_student_at_natural(batch: Batch, x_adv: Tensor) -> Tensor:
    """kl(S(x_adv), S(x_natural)). Repeated: S(x_natural), which the TRADES program computes in every step."""
    return kl_terms(batch.student(x_adv), batch.student(batch.x_natural)).sum()


def cross_entropy(batch: Batch, x_adv: Tensor) -> Tensor:
    """CE(S(x_adv), y)."""
    return F.cross_entropy(batch.student(x_adv), batch.labels, reduction="sum")


def kl_to_linear_teacher(batch: Batch, x_adv: Tensor) -> Tensor:
    """kl(S(x_adv), T(x_natural) with the logit of y moved along its gradient), the inner value of SAAD."""
    teacher_logits, gradient = batch.linear_teacher
    moved = teacher_logits.clone()
    moved[torch.arange(len(moved)), batch.labels] += torch.einsum("bchw,bchw->b", gradient, x_adv - batch.x_natural)
    return kl_terms(batch.student(x_adv), moved).sum()


def adaad_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """lambda kl(S(x_adv), T(x_adv)) + (1 - lambda) kl(S(x_natural), T(x_natural)), the mean over images and classes.

    Zero weight: T(x_natural), and the loss and the backward pass of S(x_natural), as 1 - lambda = 0. The pass of
    S(x_natural) itself changes the statistics.
    """
    student_logits_natural, student_logits_adv = batch.student(batch.x_natural), batch.student(x_adv)
    kl_natural = kl_terms(student_logits_natural, batch.teacher_logits_natural).mean()
    kl_adv = kl_terms(student_logits_adv, batch.teacher_logits(x_adv)).mean()
    return ADAAD_WEIGHT * kl_adv + (1 - ADAAD_WEIGHT) * kl_natural


def pgd_at_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """CE(S(x_adv), y). For the statistics: S(x_natural), afterwards."""
    student_logits_adv, _ = batch.student(x_adv), batch.student(batch.x_natural)
    return F.cross_entropy(student_logits_adv, batch.labels)


def trades_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """CE(S(x_natural), y) + beta kl(S(x_adv), S(x_natural)). For the statistics: S(x_natural) again, at the end."""
    natural_term = F.cross_entropy(batch.student(batch.x_natural), batch.labels)
    return natural_term + ROBUSTNESS_WEIGHT * kl_mean(batch.student(x_adv), batch.student(batch.x_natural))


def mart_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """-log p_y(x_adv) - log(1 - max_{k != y} p_k(x_adv)) + lambda (1 - p_y(x_natural)) kl(S(x_adv), S(x_natural)).

    Without the program's constants inside the logarithms, up to 1e-4, which keep its softmax from log 0.
    """
    student_logits_natural, student_logits_adv = batch.student(batch.x_natural), batch.student(x_adv)
    probs = F.softmax(student_logits_adv, dim=1)
    top = torch.argsort(probs, dim=1)[:, -2:]
    rival = torch.where(top[:, 1] == batch.labels, top[:, 0], top[:, 1])
    boosted = F.cross_entropy(student_logits_adv, batch.labels) + F.nll_loss(torch.log(1 - probs), rival)
    label_probs = F.softmax(student_logits_natural, dim=1).gather(1, batch.labels[:, None]).squeeze(1)
    return boosted + MART_WEIGHT * kl_mean(student_logits_adv, student_logits_natural, weight=1 - label_probs)


def lbgat_fixed_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """mean_j (S(x_adv)_j - T(x_natural)_j)^2 + beta kl(S(x_adv), S(x_natural)), without the training of the teacher."""
    student_logits_adv, student_logits_natural = batch.student(x_adv), batch.student(batch.x_natural)
    squared_error = F.mse_loss(student_logits_adv, batch.teacher_logits_natural)
    return squared_error + ROBUSTNESS_WEIGHT * kl_mean(student_logits_adv, student_logits_natural)


def ard_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_natural)) + (1 - a) CE(S(x_natural), y).

    Zero weight: the loss and the backward pass of S(x_natural), as 1 - a = 0; the pass itself changes the statistics.
    """
    student_logits_adv, student_logits_natural = batch.student(x_adv), batch.student(batch.x_natural)
    natural_term = F.cross_entropy(student_logits_natural, batch.labels)
    teacher_term = softened_kl(student_logits_adv, batch.teacher_logits_natural)
    return TEACHER_WEIGHT * teacher_term + (1 - TEACHER_WEIGHT) * natural_term


def rslad_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """5/6 kl(S(x_adv), T(x_natural)) + 1/6 kl(S(x_natural), T(x_natural))."""
    kl_adv = kl_mean(batch.student(x_adv), batch.teacher_logits_natural)
    kl_natural = kl_mean(batch.student(batch.x_natural), batch.teacher_logits_natural)
    return RSLAD_WEIGHT * kl_adv + (1 - RSLAD_WEIGHT) * kl_natural


def akd_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """(1 - a) CE(S(x_adv), y) + a tau^2 kl_tau(S(x_adv), T(x_adv))."""
    student_logits = batch.student(x_adv)
    teacher_term = softened_kl(student_logits, batch.teacher_logits(x_adv))
    label_term = F.cross_entropy(student_logits, batch.labels)
    return AKD_TEACHER_WEIGHT * teacher_term + (1 - AKD_TEACHER_WEIGHT) * label_term


def trust_one_by_one(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """w [B] = (probability that the teacher gives to y)^b.

    Repeated: the softmax of the whole batch, once per image, each time with two host syncs.
    """
    trust = torch.ones(len(labels), device=labels.device)
    for i in range(len(labels)):
        label_prob = F.softmax(teacher_logits, dim=1)[i][int(labels[i].item())]
        trust[i] = label_prob.pow(INTROSPECTION_POWER).item()
    return trust


def trust_at_once(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Weights of trust_one_by_one, for the whole batch at once and without a host sync."""
    label_probs = F.softmax(teacher_logits.detach(), dim=1).gather(1, labels[:, None]).squeeze(1)
    return label_probs**INTROSPECTION_POWER


def introspective_sum(
    student_logits_adv: Tensor,
    student_logits_natural: Tensor,
    teacher_logits: Tensor,
    trust: Tensor,
    label_term: Tensor,
) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T) + a (1 - w) kl(S(x_adv), S(x_natural)) + (1 - a) CE(S(x_natural), y)."""
    teacher_term = softened_kl(student_logits_adv, teacher_logits)
    self_term = kl_mean(student_logits_adv, student_logits_natural, weight=1 - trust)
    return TEACHER_WEIGHT * (teacher_term + self_term) + (1 - TEACHER_WEIGHT) * label_term


def iad_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """The introspective sum with T(x_natural).

    Repeated: the softmaxes of trust_one_by_one. For the statistics: S(x_natural) in two passes, of which one is for the
    labels' term with zero weight.
    """
    student_logits_adv = batch.student(x_adv)
    natural_term = F.cross_entropy(batch.student(batch.x_natural), batch.labels)
    student_logits_natural = batch.student(batch.x_natural)
    trust = trust_one_by_one(batch.teacher_logits(x_adv), batch.labels)
    return introspective_sum(
        student_logits_adv, student_logits_natural, batch.teacher_logits_natural, trust, natural_term
    )


def adaiad_loss(batch: Batch, x_adv: Tensor, trust_of: Callable[[Tensor, Tensor], Tensor] = trust_one_by_one) -> Tensor:
    """The introspective sum with T(x_adv).

    Repeated: the softmaxes of trust_one_by_one; and T(x_adv), in two passes that both record the graph, of which one
    gets a backward pass down to the gradients of the teacher's weights. For the statistics: S(x_natural) in three
    passes, of which the first is for the training accuracy and the last for the labels' term with zero weight.
    """
    batch.student(batch.x_natural)
    student_logits_adv = batch.student(x_adv)
    trust = trust_of(batch.teacher(x_adv), batch.labels)
    teacher_logits = batch.teacher(x_adv)
    student_logits_natural = batch.student(batch.x_natural)
    natural_term = F.cross_entropy(batch.student(batch.x_natural), batch.labels)
    return introspective_sum(student_logits_adv, student_logits_natural, teacher_logits, trust, natural_term)


def lean_adaiad_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """adaiad_loss without repeated passes, so with other statistics; the labels' term with zero weight is kept."""
    student_logits_natural, student_logits_adv = batch.student(batch.x_natural), batch.student(x_adv)
    teacher_logits = batch.teacher_logits(x_adv)
    trust = trust_at_once(teacher_logits, batch.labels)
    natural_term = F.cross_entropy(student_logits_natural, batch.labels)
    return introspective_sum(student_logits_adv, student_logits_natural, teacher_logits, trust, natural_term)


def saad_loss(batch: Batch, x_adv: Tensor) -> Tensor:
    """mean_i w_i (kl(S(x_adv), T(x_adv)) + kl(S(x_adv) - S(x_opposite), T(x_adv) - T(x_opposite))), w from entropies.

    Repeated: T(x_natural), which the search has computed. Zero weight: the term of T(x_natural) and S(x_natural), with
    its backward pass.
    """
    x_opposite = 2 * batch.x_natural - x_adv
    student_logits_adv, student_logits_opposite = batch.student(x_adv), batch.student(x_opposite)
    student_logits_natural = batch.student(batch.x_natural)
    student_difference = student_logits_adv - student_logits_opposite
    teacher_logits_adv = batch.teacher_logits(x_adv)
    teacher_difference = teacher_logits_adv - batch.teacher_logits(x_opposite)
    entropy = torch.special.entr(F.softmax(teacher_logits_adv, dim=1)).sum(dim=1)
    w = ENTROPY_SCALE * (entropy - entropy.min())
    natural_term = kl_mean(student_logits_natural, batch.teacher_logits_natural, weight=1 - w / w.max())
    kl_adv = kl_mean(student_logits_adv, teacher_logits_adv, weight=w)
    return kl_adv + kl_mean(student_difference, teacher_difference, weight=w) + 0.0 * natural_term


_NATURAL_LAST = {"statistics": ("adversarial", "natural")}
# AdaIAD and IAD with the introspection term active, so that the step has its full cost.
_INTROSPECTIVE = {"introspection_begin": 0}
_pgd = partial(Reference, start=uniform_start, inner_value=cross_entropy)

REFERENCES = {
    "adaad": Reference(
        start=gaussian_start, inner_value=kl_to_teacher, outer_loss=adaad_loss, options={"kl_reduction": "mean"}
    ),
    "adaiad": Reference(
        start=gaussian_start,
        inner_value=kl_to_teacher,
        outer_loss=adaiad_loss,
        options=_INTROSPECTIVE | {"statistics": ("natural", "adversarial", "natural", "natural")},
    ),
    "pgd-at": _pgd(outer_loss=pgd_at_loss, options=_NATURAL_LAST),
    "trades": Reference(
        start=gaussian_start,
        inner_value=kl_to_student_at_natural,
        outer_loss=trades_loss,
        options={"statistics": ("natural", "adversarial", "natural")},
    ),
    "mart": Reference(start=gaussian_start, inner_value=cross_entropy, outer_loss=mart_loss),
    "lbgat-fixed": Reference(
        start=gaussian_start,
        inner_value=kl_to_student_at_natural,
        outer_loss=lbgat_fixed_loss,
        options=_NATURAL_LAST,
    ),
    "ard": _pgd(outer_loss=ard_loss, options=_NATURAL_LAST),
    "iad": _pgd(outer_loss=iad_loss, options=_INTROSPECTIVE | {"statistics": ("adversarial", "natural", "natural")}),
    "rslad": Reference(
        start=gaussian_start, inner_value=kl_to_teacher_at_natural, outer_loss=rslad_loss, options=_NATURAL_LAST
    ),
    "akd": _pgd(outer_loss=akd_loss),
    "saad": Reference(
        start=gaussian_start,
        inner_value=kl_to_linear_teacher,
        outer_loss=saad_loss,
        options={"igdm_ramp_epochs": 0, "statistics": ("adversarial", "opposite", "natural")},
    ),
}

# The same steps with fewer repeated passes, by name of the variant: they measure the cost of the repeated passes.
LEANER = {
    "adaiad": {
        "reference-no-loop": replace(REFERENCES["adaiad"], outer_loss=partial(adaiad_loss, trust_of=trust_at_once)),
        "reference-lean": replace(REFERENCES["adaiad"], outer_loss=lean_adaiad_loss),
    }
}
