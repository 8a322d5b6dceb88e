"""kl of student and teacher, and its gradient with respect to both networks' logits."""

import torch
from torch import Tensor

from . import checks
from .registration import register


def kl_grad(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """kl = sum_j q_j (log q_j - log p_j) per sample, which the literature writes KL(S || T), and both logit gradients.

    With p = softmax(student_logits / temperature), q = softmax(teacher_logits / temperature):

        grad_student_logits = (p - q) / temperature
        grad_teacher_logits = q (log q - log p - kl) / temperature

    student_logits, teacher_logits: [B, N] fp32, fp16 or bf16, any strides. Returns kl [B] fp32 and the two gradients
    [B, N] of kl itself, contiguous, each in the dtype of its logits. Arithmetic is fp32; nothing here is
    differentiable. A masked class (-inf) has probability and gradient 0; one that only the student masks makes kl
    infinite and is left out of grad_teacher_logits. Raises ValueError for arguments that do not fit.
    """
    checks.check_logits("student_logits", student_logits)
    checks.check_logits("teacher_logits", teacher_logits)
    checks.check_shape("teacher_logits", teacher_logits, student_logits.shape, "that of student_logits")
    checks.check_device("teacher_logits", teacher_logits, "student_logits", student_logits)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature is {temperature}: it must be a finite number > 0")
    return _op(student_logits.detach(), teacher_logits.detach(), temperature)


def kl_grad_ref(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """kl_grad in plain torch."""
    student_scaled, teacher_scaled = student_logits.float() / temperature, teacher_logits.float() / temperature
    student_log_probs, teacher_log_probs = student_scaled.log_softmax(dim=1), teacher_scaled.log_softmax(dim=1)
    student_probs, teacher_probs = student_log_probs.exp(), teacher_log_probs.exp()
    # Of the scaled logits: one that overflows to -inf is masked too.
    student_masks, teacher_masks = student_scaled == -torch.inf, teacher_scaled == -torch.inf
    log_ratio = (teacher_log_probs - student_log_probs).masked_fill(student_masks | teacher_masks, 0.0)
    kl = (teacher_probs * log_ratio).sum(dim=1, keepdim=True)
    grad_student_logits = (student_probs - teacher_probs) / temperature
    grad_teacher_logits = teacher_probs * (log_ratio - kl) / temperature
    lost = ((teacher_probs > 0) & student_masks).any(dim=1)
    return (
        torch.where(lost, torch.inf, 0.0) + kl.squeeze(1),
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
