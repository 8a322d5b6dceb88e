"""What the student is trained to minimise at x_adv: one function per loss.

KL(S, T) = sum_j q_j (log q_j - log p_j) per image, p of the student and q of the teacher. A loss runs the student on
x_natural before x_adv, as the authors' programs do: the order decides the running statistics of batch-norm.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastadaad.method_options import KLReduction, MethodOptions


@dataclass(frozen=True, kw_only=True)
class OuterBatch:
    """One batch on its way through the outer minimisation."""

    student: nn.Module
    teacher: nn.Module | None
    x_natural: Tensor
    x_adv: Tensor
    labels: Tensor | None
    epoch: int


def kl_per_image(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """kl [B] of two [B, N] logit tensors divided by `temperature`, in fp32; differentiable in both.

    A class that the teacher masks (-inf) adds nothing, as in ops.kl_grad, where F.kl_div would give NaN.
    """
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(teacher_log_probs == -torch.inf, 0.0)
    return (teacher_log_probs.exp() * log_ratio).sum(dim=1)


def kl_mean(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reduction: KLReduction,
    *,
    temperature: float = 1.0,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """kl_per_image, weighted per image by `weight` [B] and averaged as `reduction` says."""
    mean = (weight * kl_per_image(student_logits, teacher_logits, temperature)).mean()
    return mean if reduction == "batchmean" else mean / student_logits.shape[1]


def teacher_logits_of(batch: OuterBatch, x: Tensor) -> Tensor:
    """Teacher logits at `x` [B, C, H, W], without gradient; for methods that need a teacher (Method checks it)."""
    assert batch.teacher is not None
    with torch.no_grad():
        return batch.teacher(x)


def labels_of(batch: OuterBatch) -> Tensor:
    """Labels [B], for methods that need them (Method checks it)."""
    assert batch.labels is not None
    return batch.labels


def update_clean_statistics(batch: OuterBatch, options: MethodOptions) -> None:
    """Where the loss has no use for S(x_natural), show x_natural to the student's batch-norm all the same."""
    if options.clean_statistics:
        with torch.no_grad():
            batch.student(batch.x_natural)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def weighted_kl_loss(batch: OuterBatch, options: MethodOptions, natural_target: Tensor | None) -> Tensor:
    """lambda kl(S(x_adv), target) + (1 - lambda) kl(S(x_natural), T(x_natural)).

    The target at x_adv is `natural_target`, the teacher's logits at x_natural, or where that is None, at x_adv.
    """
    weight, reduction = options.adversarial_weight, options.kl_reduction
    loss = torch.zeros((), device=batch.x_adv.device)
    if weight < 1:
        student_logits = batch.student(batch.x_natural)
        target = teacher_logits_of(batch, batch.x_natural) if natural_target is None else natural_target
        loss = (1 - weight) * kl_mean(student_logits, target, reduction)
    else:
        update_clean_statistics(batch, options)
    student_logits = batch.student(batch.x_adv)
    target = teacher_logits_of(batch, batch.x_adv) if natural_target is None else natural_target
    return loss + weight * kl_mean(student_logits, target, reduction)


def adaad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_adv)) + (1 - lambda) kl(S(x_natural), T(x_natural)): AdaAD (CVPR 2023)."""
    return weighted_kl_loss(batch, options, natural_target=None)


def rslad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_natural)) + (1 - lambda) kl(S(x_natural), T(x_natural)): RSLAD (Zi et al., 2021)."""
    return weighted_kl_loss(batch, options, natural_target=teacher_logits_of(batch, batch.x_natural))


def pgd_at_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_adv), y): PGD-AT (Madry et al., 2018)."""
    return cross_entropy(batch.student(batch.x_adv), labels_of(batch))


def trades_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_natural), y) + beta kl(S(x_adv), S(x_natural)), gradient through both: TRADES (Zhang et al., 2019)."""
    natural_logits = batch.student(batch.x_natural)
    adversarial_logits = batch.student(batch.x_adv)
    kl = kl_mean(adversarial_logits, natural_logits, options.kl_reduction)
    return cross_entropy(natural_logits, labels_of(batch)) + options.robustness_weight * kl


def distillation_term(
    student_logits: Tensor, teacher_logits: Tensor, options: MethodOptions, weight: Tensor | float = 1.0
) -> Tensor:
    """tau^2 kl of the softened outputs, weighted per image by `weight` [B]."""
    tau = options.temperature
    return tau**2 * kl_mean(student_logits, teacher_logits, options.kl_reduction, temperature=tau, weight=weight)


def akd_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_adv)) + (1 - a) CE(S(x_adv), y): AKD (Maroto et al., 2022)."""
    a, student_logits = options.teacher_weight, batch.student(batch.x_adv)
    distillation = distillation_term(student_logits, teacher_logits_of(batch, batch.x_adv), options)
    return a * distillation + (1 - a) * cross_entropy(student_logits, labels_of(batch))


def ard_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_natural)) + (1 - a) CE(S(x_natural), y): ARD (Goldblum et al., 2020)."""
    return _teacher_and_label_loss(batch, options, teacher_logits_of(batch, batch.x_natural))


def _teacher_and_label_loss(batch: OuterBatch, options: MethodOptions, teacher_logits: Tensor) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T) + (1 - a) CE(S(x_natural), y), with T given as logits [B, N]."""
    a = options.teacher_weight
    label_term: Tensor | float = 0.0
    if a < 1:
        label_term = (1 - a) * cross_entropy(batch.student(batch.x_natural), labels_of(batch))
    else:
        update_clean_statistics(batch, options)
    return a * distillation_term(batch.student(batch.x_adv), teacher_logits, options) + label_term


def iad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """The introspective loss with the teacher at x_natural: IAD (Zhu et al., 2022)."""
    return _introspective_loss(batch, options, batch.x_natural)


def adaiad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """The introspective loss with the teacher at x_adv: AdaIAD (CVPR 2023)."""
    return _introspective_loss(batch, options, batch.x_adv)


def _introspective_loss(batch: OuterBatch, options: MethodOptions, x_teacher: Tensor) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_teacher)) [w] + a (1 - w) kl(S(x_adv), S(x_natural)) + (1 - a) CE(S(x_natural), y).

    w [B] = (probability that the teacher gives to y at x_adv)^b; before epoch introspection_begin it is 1.
    """
    teacher_logits = teacher_logits_of(batch, x_teacher)
    if batch.epoch < options.introspection_begin:
        return _teacher_and_label_loss(batch, options, teacher_logits)
    teacher_logits_adv = teacher_logits if x_teacher is batch.x_adv else teacher_logits_of(batch, batch.x_adv)
    a, labels = options.teacher_weight, labels_of(batch)
    label_probs = F.softmax(teacher_logits_adv.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    w = label_probs**options.introspection_power
    natural_logits, adversarial_logits = batch.student(batch.x_natural), batch.student(batch.x_adv)
    teacher_term = distillation_term(
        adversarial_logits, teacher_logits, options, weight=w if options.introspective_teacher_term else 1.0
    )
    self_term = kl_mean(adversarial_logits, natural_logits, options.kl_reduction, weight=1 - w)
    return a * (teacher_term + self_term) + (1 - a) * cross_entropy(natural_logits, labels)
