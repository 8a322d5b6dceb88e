"""What the student is trained to minimise at x_adv: one function per loss.

KL(S, T) = sum_j q_j (log q_j - log p_j) per image, p of the student and q of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadaad.method_options import KLReduction, MethodOptions
from fastadaad.outer_batch import OuterBatch


def kl_per_image(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """kl [B] of two [B, N] logit tensors divided by `temperature`, in fp32; differentiable in both.

    A class that the teacher masks (-inf) adds nothing, as in ops.kl_grad, where F.kl_div would give NaN.
    """
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(teacher_log_probs == -torch.inf, 0.0)
    return (teacher_log_probs.exp() * log_ratio).sum(dim=1)


def mean_over_images(values: Tensor, num_classes: int, reduction: KLReduction) -> Tensor:
    """Mean of one value per image [B]; reduction `mean` divides by the number of classes as well."""
    return values.mean() if reduction == "batchmean" else values.mean() / num_classes


def kl_mean(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reduction: KLReduction,
    *,
    temperature: float = 1.0,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """kl_per_image, weighted per image by `weight` [B] and averaged as `reduction` says."""
    kl = weight * kl_per_image(student_logits, teacher_logits, temperature)
    return mean_over_images(kl, student_logits.shape[1], reduction)


def update_clean_statistics(batch: OuterBatch, options: MethodOptions) -> None:
    """Where the loss has no use for S(x_natural), show x_natural to the student's batch-norm all the same."""
    if options.clean_statistics:
        with torch.no_grad():
            batch.student(batch.x_natural)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def natural_kl_loss(batch: OuterBatch, options: MethodOptions) -> Tensor | float:
    """(1 - lambda) kl(S(x_natural), T(x_natural)); without a pass of either network for it where lambda is 1."""
    if options.adversarial_weight == 1:
        update_clean_statistics(batch, options)
        return 0.0
    kl = kl_mean(batch.student_logits_natural, batch.teacher_logits_natural, options.kl_reduction)
    return (1 - options.adversarial_weight) * kl


def adaad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_adv)) + (1 - lambda) kl(S(x_natural), T(x_natural)): AdaAD (CVPR 2023)."""
    natural = natural_kl_loss(batch, options)
    adversarial = kl_mean(batch.student_logits_adv, batch.teacher_logits_adv, options.kl_reduction)
    return natural + options.adversarial_weight * adversarial


def rslad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_natural)) + (1 - lambda) kl(S(x_natural), T(x_natural)): RSLAD (Zi et al., 2021)."""
    natural = natural_kl_loss(batch, options)
    adversarial = kl_mean(batch.student_logits_adv, batch.teacher_logits_natural, options.kl_reduction)
    return natural + options.adversarial_weight * adversarial


def pgd_at_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_adv), y): PGD-AT (Madry et al., 2018)."""
    return cross_entropy(batch.student_logits_adv, batch.required_labels)


def trades_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_natural), y) + beta kl(S(x_adv), S(x_natural)), gradient through both: TRADES (Zhang et al., 2019)."""
    natural = cross_entropy(batch.student_logits_natural, batch.required_labels)
    kl = kl_mean(batch.student_logits_adv, batch.student_logits_natural, options.kl_reduction)
    return natural + options.robustness_weight * kl


def distillation_term(
    student_logits: Tensor, teacher_logits: Tensor, options: MethodOptions, weight: Tensor | float = 1.0
) -> Tensor:
    """tau^2 kl of the softened outputs, weighted per image by `weight` [B]."""
    tau = options.temperature
    return tau**2 * kl_mean(student_logits, teacher_logits, options.kl_reduction, temperature=tau, weight=weight)


def akd_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_adv)) + (1 - a) CE(S(x_adv), y): AKD (Maroto et al., 2022)."""
    a = options.teacher_weight
    distillation = distillation_term(batch.student_logits_adv, batch.teacher_logits_adv, options)
    return a * distillation + (1 - a) * cross_entropy(batch.student_logits_adv, batch.required_labels)


def ard_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_natural)) + (1 - a) CE(S(x_natural), y): ARD (Goldblum et al., 2020)."""
    return _teacher_and_label_loss(batch, options, batch.teacher_logits_natural)


def _teacher_and_label_loss(batch: OuterBatch, options: MethodOptions, teacher_logits: Tensor) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T) + (1 - a) CE(S(x_natural), y), with T given as logits [B, N]."""
    a = options.teacher_weight
    label_term: Tensor | float = 0.0
    if a < 1:
        label_term = (1 - a) * cross_entropy(batch.student_logits_natural, batch.required_labels)
    else:
        update_clean_statistics(batch, options)
    return a * distillation_term(batch.student_logits_adv, teacher_logits, options) + label_term


def iad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """The introspective loss with the teacher at x_natural: IAD (Zhu et al., 2022)."""
    return _introspective_loss(batch, options, batch.teacher_logits_natural)


def adaiad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """The introspective loss with the teacher at x_adv: AdaIAD (CVPR 2023)."""
    return _introspective_loss(batch, options, batch.teacher_logits_adv)


def _introspective_loss(batch: OuterBatch, options: MethodOptions, teacher_logits: Tensor) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T) [w] + a (1 - w) kl(S(x_adv), S(x_natural)) + (1 - a) CE(S(x_natural), y).

    w [B] = (probability that the teacher gives to y at x_adv)^b; before epoch introspection_begin it is 1.
    """
    if batch.epoch < options.introspection_begin:
        return _teacher_and_label_loss(batch, options, teacher_logits)
    a, labels = options.teacher_weight, batch.required_labels
    label_probs = F.softmax(batch.teacher_logits_adv.float(), dim=1).gather(1, labels[:, None]).squeeze(1)
    w = label_probs**options.introspection_power
    natural_logits, adversarial_logits = batch.student_logits_natural, batch.student_logits_adv
    teacher_term = distillation_term(
        adversarial_logits, teacher_logits, options, weight=w if options.introspective_teacher_term else 1.0
    )
    self_term = kl_mean(adversarial_logits, natural_logits, options.kl_reduction, weight=1 - w)
    return a * (teacher_term + self_term) + (1 - a) * cross_entropy(natural_logits, labels)
