"""Cross-entropy and its gradient with respect to the logits."""

import torch
from torch import Tensor

from . import checks
from .registration import register


def cross_entropy_grad(student_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """loss = -log p_y per sample and its gradient p - onehot(y), with p = softmax(student_logits).

    Arithmetic is fp32, and the results are not differentiable. A masked class (-inf) has probability and gradient 0; a
    masked label makes the loss infinite.

    Args:
        student_logits: [B, N] fp32, fp16 or bf16, any strides.
        labels: int64 [B], each in [0, N).

    Returns:
        loss [B] fp32, and grad_student_logits [B, N], contiguous, in the dtype of student_logits.

    Raises:
        ValueError: An argument has the wrong shape, dtype or device.
        RuntimeError: A label is out of range (the C++ kernel checks this).
    """
    checks.check_logits("student_logits", student_logits)
    checks.check_dtype("labels", labels, torch.int64)
    checks.check_shape("labels", labels, student_logits.shape[:1], "one for each row of student_logits")
    checks.check_device("labels", labels, "student_logits", student_logits)
    return _op(student_logits.detach(), labels)


def cross_entropy_grad_ref(student_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Reference of cross_entropy_grad in plain torch."""
    student_log_probs = torch.log_softmax(student_logits.float(), dim=1)
    loss = -student_log_probs.gather(1, labels[:, None]).squeeze(1)
    one_hot = torch.zeros_like(student_log_probs).scatter_(1, labels[:, None], 1.0)
    return loss, (student_log_probs.exp() - one_hot).to(student_logits.dtype)


def _fake(student_logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    loss = student_logits.new_empty(student_logits.shape[0], dtype=torch.float32)
    return loss, student_logits.new_empty(student_logits.shape)


_op = register(
    "cross_entropy_grad(Tensor student_logits, Tensor labels) -> (Tensor, Tensor)", cross_entropy_grad_ref, _fake
)
