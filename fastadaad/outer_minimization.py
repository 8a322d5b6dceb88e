"""What the student is trained to minimise at x_adv. KL(S, T) = sum_j q_j (log q_j - log p_j), p of S and q of T."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """What a method leaves to the user; a loss reads those it has a use for and ignores the others."""

    adversarial_weight: float = 1.0
    """lambda of AdaAD: weight of the kl at x_adv against the kl at x_natural."""
    kl_reduction: Literal["batchmean", "mean"] = "batchmean"
    """mean divides by batch and classes, as the authors' CIFAR-10 program does."""
    clean_statistics: bool = True
    """Run the student on x_natural in train mode even where the loss ignores it: batch-norm sees clean images too."""

    def __post_init__(self) -> None:
        if not 0 <= self.adversarial_weight <= 1:
            raise ValueError(f"adversarial_weight is {self.adversarial_weight}: it must lie in [0, 1]")
        if self.kl_reduction not in ("batchmean", "mean"):
            raise ValueError(f"kl_reduction is {self.kl_reduction!r}: choose batchmean or mean")


@dataclass(frozen=True, kw_only=True)
class OuterBatch:
    """One batch on its way through the outer minimisation."""

    student: nn.Module
    teacher: nn.Module | None
    x_natural: Tensor
    x_adv: Tensor
    labels: Tensor | None
    epoch: int


def kl_mean(student_logits: Tensor, teacher_logits: Tensor, reduction: str) -> Tensor:
    """kl of two [B, N] logit tensors, averaged as `reduction` says, in fp32; differentiable in both arguments.

    A class that the teacher masks (-inf) adds nothing, as in ops.kl_grad, where F.kl_div would give NaN.
    """
    student_log_probs = F.log_softmax(student_logits.float(), dim=1)
    teacher_log_probs = F.log_softmax(teacher_logits.float(), dim=1)
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(teacher_log_probs == -torch.inf, 0.0)
    kl = teacher_log_probs.exp() * log_ratio
    return kl.sum(dim=1).mean() if reduction == "batchmean" else kl.mean()


def teacher_logits_of(batch: OuterBatch, x: Tensor) -> Tensor:
    """Teacher logits at `x` [B, C, H, W], without gradient; for methods that need a teacher (Method checks it)."""
    assert batch.teacher is not None
    with torch.no_grad():
        return batch.teacher(x)


def adaad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """lambda kl(S(x_adv), T(x_adv)) + (1 - lambda) kl(S(x_natural), T(x_natural)): AdaAD (CVPR 2023)."""
    weight = options.adversarial_weight
    # The clean pass comes first, as in the authors' program: the order decides the running statistics.
    loss = torch.zeros((), device=batch.x_adv.device)
    if weight < 1:
        student_logits = batch.student(batch.x_natural)
        loss = (1 - weight) * kl_mean(student_logits, teacher_logits_of(batch, batch.x_natural), options.kl_reduction)
    elif options.clean_statistics:
        with torch.no_grad():
            batch.student(batch.x_natural)
    student_logits = batch.student(batch.x_adv)
    return loss + weight * kl_mean(student_logits, teacher_logits_of(batch, batch.x_adv), options.kl_reduction)


def cross_entropy_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """Cross-entropy of the student at x_adv, averaged over the batch: PGD-AT (Madry et al., 2018)."""
    if batch.labels is None:
        raise ValueError("labels are missing: the cross-entropy of this method needs them")
    return F.cross_entropy(batch.student(batch.x_adv).float(), batch.labels)
