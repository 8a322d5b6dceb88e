"""kl of student and teacher, and its gradients with respect to the logits of both networks."""

import torch
from torch import Tensor

from . import checks
from .registration import register


def kl_grad(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """kl = sum_j q_j (log q_j - log p_j) per sample, in the literature KL(S || T), and both logit gradients.

    With p = softmax(student_logits / temperature), q = softmax(teacher_logits / temperature):

        grad_student_logits = (p - q) / temperature
        grad_teacher_logits = q (log q - log p - kl) / temperature

    Arithmetic is fp32, and the results are not differentiable. kl is accurate even if the networks nearly agree, as its
    terms do not cancel (`kl_terms`). A masked class (-inf) has probability and gradient 0. A class that only the
    student masks makes kl infinite and is left out of grad_teacher_logits.

    Args:
        student_logits: [B, N] fp32, fp16 or bf16, any strides.
        teacher_logits: As student_logits; the dtype may differ.
        temperature: Divisor of both logits, above 0.

    Returns:
        kl [B] fp32, grad_student_logits and grad_teacher_logits: the gradients [B, N] of kl, contiguous, each in the
        dtype of its logits.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value.
    """
    checks.check_logits("student_logits", student_logits)
    checks.check_logits("teacher_logits", teacher_logits)
    checks.check_shape("teacher_logits", teacher_logits, student_logits.shape, "that of student_logits")
    checks.check_device("teacher_logits", teacher_logits, "student_logits", student_logits)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be a finite number > 0")
    return _op(student_logits.detach(), teacher_logits.detach(), temperature)


def kl_terms(student_probs: Tensor, teacher_probs: Tensor, log_ratio: Tensor) -> Tensor:
    """Returns terms [B, N] whose sum over the classes is kl, from p, q and log_ratio = log q - log p; differentiable.

    The terms q log_ratio have both signs, and cancel in their sum if p and q are close: kl of two softened outputs
    would keep no digit. As sum p = sum q, the terms q log_ratio + p - q have the same sum, and none is negative. They
    equal q (log_ratio + expm1(-log_ratio)), which loses no digits to p - q, but overflows far from 0. A masked class
    has the log_ratio 0 and its own p or q.
    """
    near = (log_ratio.abs() < 0.25) & (log_ratio != 0)
    small = torch.where(near, log_ratio, 0.0)  # finite, as torch.where passes NaN of the other branch to the gradient
    return torch.where(
        near, teacher_probs * (small + torch.expm1(-small)), teacher_probs * log_ratio + (student_probs - teacher_probs)
    )


def kl_grad_ref(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Reference of kl_grad in plain torch."""
    student_scaled, teacher_scaled = student_logits.float() / temperature, teacher_logits.float() / temperature
    student_log_probs, teacher_log_probs = student_scaled.log_softmax(dim=1), teacher_scaled.log_softmax(dim=1)
    student_probs, teacher_probs = student_log_probs.exp(), teacher_log_probs.exp()
    # Masks of the scaled logits: a logit that overflows to -inf counts as masked.
    student_masks, teacher_masks = student_scaled == -torch.inf, teacher_scaled == -torch.inf
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(student_masks | teacher_masks, 0.0)
    # The mean of these very ratios, so that their common rounding error leaves the difference.
    mean_log_ratio = (teacher_probs * log_ratio).sum(dim=1, keepdim=True)
    grad_student_logits = (student_probs - teacher_probs) / temperature
    grad_teacher_logits = teacher_probs * (log_ratio - mean_log_ratio) / temperature
    kl = kl_terms(student_probs.masked_fill(student_masks, 0.0), teacher_probs, log_ratio).sum(dim=1)
    lost = ((teacher_probs > 0) & student_masks).any(dim=1)
    return (
        torch.where(lost, torch.inf, 0.0) + kl,
        grad_student_logits.to(student_logits.dtype),
        grad_teacher_logits.to(teacher_logits.dtype),
    )


def _fake(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    kl = student_logits.new_empty(student_logits.shape[0], dtype=torch.float32)
    return kl, student_logits.new_empty(student_logits.shape), teacher_logits.new_empty(teacher_logits.shape)


_op = register(
    "kl_grad(Tensor student_logits, Tensor teacher_logits, float temperature) -> (Tensor, Tensor, Tensor)",
    kl_grad_ref,
    _fake,
)
