"""Outer losses, which the student minimises at x_adv: one function per method.

KL(S, T) = sum_j q_j (log q_j - log p_j) per image, p of the student and q of the teacher.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastadaad.methods.objectives import strongest_rival
from fastadaad.methods.options import KLReduction, MethodOptions
from fastadaad.methods.outer_batch import OuterBatch, Point, are_soft
from fastadaad.ops.kl_grad import kl_terms
from fastadaad.runtime.batch_norm import depends_on_batch


def kl_per_image(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """kl [B] of two [B, N] logit tensors divided by `temperature`, in fp32 and differentiable in both.

    A class that the teacher masks (-inf) adds nothing, as in ops.kl_grad; F.kl_div would give NaN.
    """
    student_log_probs = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(teacher_log_probs == -torch.inf, 0.0)
    return kl_terms(student_log_probs.exp(), teacher_log_probs.exp(), log_ratio).sum(dim=1)


def reduce_mean(values: Tensor, num_classes: int, reduction: KLReduction) -> Tensor:
    """Mean of one value per image [B]; the reduction `mean` also divides by the number of classes."""
    return values.mean() if reduction == "batchmean" else values.mean() / num_classes


def kl_mean(
    student_logits: Tensor,
    teacher_logits: Tensor,
    reduction: KLReduction,
    *,
    temperature: float = 1.0,
    weight: Tensor | float = 1.0,
) -> Tensor:
    """Mean of kl_per_image by `reduction`, with each image weighted by `weight` [B]."""
    kl = weight * kl_per_image(student_logits, teacher_logits, temperature)
    return reduce_mean(kl, student_logits.shape[1], reduction)


def update_clean_statistics(batch: OuterBatch, options: MethodOptions) -> None:
    """Runs the student on x_natural for its batch-norm statistics, for losses that do not use S(x_natural).

    Does nothing if the option `statistics` lists the passes.
    """
    if options.clean_statistics and not options.statistics and depends_on_batch(batch.student):
        with torch.no_grad():
            batch.student(batch.x_natural)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, N] in fp32, with class numbers [B] or label distributions [B, N].

    A class that the student masks (-inf) adds nothing if its label is 0; F.cross_entropy would give NaN.
    """
    if not are_soft(labels):
        return F.cross_entropy(logits.float(), labels)
    log_probs = F.log_softmax(logits.float(), dim=1).masked_fill(labels == 0, 0.0)
    return -(labels.float() * log_probs).sum(dim=1).mean()


def adaad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_adv)) + (1 - lambda) kl(S(x_natural), T(x_natural)): AdaAD (CVPR 2023)."""
    return _weighted_kl_loss(batch, options, "adv")


def rslad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_natural)) + (1 - lambda) kl(S(x_natural), T(x_natural)): RSLAD (Zi et al., 2021)."""
    return _weighted_kl_loss(batch, options, "natural")


def _weighted_kl_loss(batch: OuterBatch, options: MethodOptions, teacher_point: Point) -> Tensor:
    """lambda kl(S(x_adv), T(x at teacher_point)) + (1 - lambda) kl(S(x_natural), T(x_natural))."""
    adversarial_weight = options.adversarial_weight
    if adversarial_weight == 1:
        update_clean_statistics(batch, options)
    terms: list[tuple[float, Point, Point]] = [
        (1 - adversarial_weight, "natural", "natural"),
        (adversarial_weight, "adv", teacher_point),
    ]
    weights, student_points, teacher_points = zip(*[term for term in terms if term[0]], strict=True)
    student_logits, teacher_logits = batch.student_logits(*student_points), batch.teacher_logits(*teacher_points)
    kls = [kl_mean(s, t, options.kl_reduction) for s, t in zip(student_logits, teacher_logits, strict=True)]
    return torch.stack([weight * kl for weight, kl in zip(weights, kls, strict=True)]).sum()


def pgd_at_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_adv), y): PGD-AT (Madry et al., 2018)."""
    return cross_entropy(batch.student_logits_adv, batch.required_labels)


def trades_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """CE(S(x_natural), y) + beta kl(S(x_adv), S(x_natural)), gradient through both: TRADES (Zhang et al., 2019)."""
    if options.robustness_weight == 0:
        return cross_entropy(batch.student_logits_natural, batch.required_labels)
    natural_logits, adversarial_logits = batch.student_logits("natural", "adv")
    kl = kl_mean(adversarial_logits, natural_logits, options.kl_reduction)
    return cross_entropy(natural_logits, batch.required_labels) + options.robustness_weight * kl


def boosted_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k) [B] of logits [B, N], in fp32.

    1 - p_k is the sum of the other probabilities: the difference has no digits left where p_k rounds to 1.
    """
    log_probs = F.log_softmax(logits.float(), dim=1)
    others = log_probs.scatter(1, strongest_rival(log_probs.detach(), labels), -torch.inf)
    return -log_probs.gather(1, labels[:, None]).squeeze(1) - others.logsumexp(dim=1)


def mart_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """BCE(S(x_adv), y) + lambda (1 - p_y) kl(S(x_adv), S(x_natural)): MART (Wang et al., 2020).

    BCE is the boosted cross-entropy, p_y the student's probability of y at x_natural; gradient through all of it.
    """
    labels = batch.required_labels
    if options.robustness_weight == 0:
        return boosted_cross_entropy(batch.student_logits_adv, labels).mean()
    natural_logits, adversarial_logits = batch.student_logits("natural", "adv")
    doubt = -torch.expm1(F.log_softmax(natural_logits, dim=1).gather(1, labels[:, None]).squeeze(1))
    kl = kl_mean(adversarial_logits, natural_logits, options.kl_reduction, weight=doubt)
    return boosted_cross_entropy(adversarial_logits, labels).mean() + options.robustness_weight * kl


def lbgat_fixed_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """mean_j (S(x_adv)_j - T(x_natural)_j)^2 + beta kl(S(x_adv), S(x_natural)): LBGAT (Cui et al., 2021), T fixed."""
    if options.robustness_weight == 0:
        update_clean_statistics(batch, options)
        return F.mse_loss(batch.student_logits_adv, batch.teacher_logits_natural)
    natural_logits, adversarial_logits = batch.student_logits("natural", "adv")
    kl = kl_mean(adversarial_logits, natural_logits, options.kl_reduction)
    return F.mse_loss(adversarial_logits, batch.teacher_logits_natural) + options.robustness_weight * kl


def distillation_term(
    student_logits: Tensor, teacher_logits: Tensor, options: MethodOptions, weight: Tensor | float = 1.0
) -> Tensor:
    """tau^2 kl of the softened outputs, weighted per image by `weight` [B]."""
    tau = options.temperature
    return tau**2 * kl_mean(student_logits, teacher_logits, options.kl_reduction, temperature=tau, weight=weight)


def akd_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_adv)) + (1 - a) CE(S(x_adv), y): AKD (Maroto et al., 2022)."""
    a = options.teacher_weight
    label_term = (1 - a) * cross_entropy(batch.student_logits_adv, batch.required_labels)
    if a == 0:
        return label_term
    return a * distillation_term(batch.student_logits_adv, batch.teacher_logits_adv, options) + label_term


def ard_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x_natural)) + (1 - a) CE(S(x_natural), y): ARD (Goldblum et al., 2020)."""
    return _teacher_and_label_loss(batch, options, "natural")


def _teacher_and_label_loss(batch: OuterBatch, options: MethodOptions, teacher_point: Point) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T(x at teacher_point)) + (1 - a) CE(S(x_natural), y)."""
    a = options.teacher_weight
    if a == 0:
        return cross_entropy(batch.student_logits_natural, batch.required_labels)
    (teacher_logits,) = batch.teacher_logits(teacher_point)
    if a == 1:
        update_clean_statistics(batch, options)
        return distillation_term(batch.student_logits_adv, teacher_logits, options)
    natural_logits, adversarial_logits = batch.student_logits("natural", "adv")
    distillation = distillation_term(adversarial_logits, teacher_logits, options)
    return a * distillation + (1 - a) * cross_entropy(natural_logits, batch.required_labels)


def iad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """Introspective loss with the teacher at x_natural: IAD (Zhu et al., 2022)."""
    return _introspective_loss(batch, options, "natural")


def adaiad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """Introspective loss with the teacher at x_adv: AdaIAD (CVPR 2023)."""
    return _introspective_loss(batch, options, "adv")


def _introspective_loss(batch: OuterBatch, options: MethodOptions, teacher_point: Point) -> Tensor:
    """a tau^2 kl_tau(S(x_adv), T) [w] + a (1 - w) kl(S(x_adv), S(x_natural)) + (1 - a) CE(S(x_natural), y).

    w [B] = (the teacher's probability of y at x_adv)^b; w is 1 before epoch introspection_begin.
    """
    a, b = options.teacher_weight, options.introspection_power
    if not options.introspects(batch.epoch) or a == 0 or b == 0:
        return _teacher_and_label_loss(batch, options, teacher_point)
    labels = batch.required_labels
    teacher_logits, teacher_logits_adv = batch.teacher_logits(teacher_point, "adv")
    w = F.softmax(teacher_logits_adv, dim=1).gather(1, labels[:, None]).squeeze(1) ** b
    natural_logits, adversarial_logits = batch.student_logits("natural", "adv")
    teacher_term = distillation_term(
        adversarial_logits, teacher_logits, options, weight=w if options.introspective_teacher_term else 1.0
    )
    self_term = kl_mean(adversarial_logits, natural_logits, options.kl_reduction, weight=1 - w)
    return a * (teacher_term + self_term) + (1 - a) * cross_entropy(natural_logits, labels)
