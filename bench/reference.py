"""The training step as the authors' AdaAD program does it: the yardstick of `python -m bench step`.

The same mathematics as `Distiller(method="adaad", kl_reduction="mean")`, in plain torch and in their order of passes,
including those they waste: a teacher pass on the natural images that lambda = 1 multiplies by zero, the loss of the
natural student pass likewise, and weight gradients that are prepared for in every inner step though nothing reads them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAUSSIAN_START_SCALE = 0.001


def reference_inner_loop(
    student: nn.Module, teacher: nn.Module, x_natural: Tensor, step_size: float, num_steps: int, epsilon: float
) -> Tensor:
    """x_natural -> x_adv, fp32 [B, C, H, W]; leaves the student in train mode, as theirs does."""
    student.eval()
    teacher.eval()
    x_adv = x_natural.detach() + GAUSSIAN_START_SCALE * torch.randn(x_natural.shape, device=x_natural.device)
    for _ in range(num_steps):
        x_adv.requires_grad_()
        student_log_probs = F.log_softmax(student(x_adv), dim=1)
        teacher_probs = F.softmax(teacher(x_adv), dim=1)
        kl = F.kl_div(student_log_probs, teacher_probs, reduction="none").sum()
        (grad_x,) = torch.autograd.grad(kl, [x_adv])
        x_adv = x_adv.detach() + step_size * torch.sign(grad_x.detach())
        x_adv = torch.min(torch.max(x_adv, x_natural - epsilon), x_natural + epsilon)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    student.train()
    return x_adv.detach()


def kl_element_mean(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over batch and classes, as their CIFAR-10 program reduces."""
    student_log_probs, teacher_probs = F.log_softmax(student_logits, dim=1), F.softmax(teacher_logits, dim=1)
    return F.kl_div(student_log_probs, teacher_probs, reduction="none").mean()


def reference_step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_natural: Tensor,
    *,
    step_size: float,
    num_steps: int,
    epsilon: float,
    adversarial_weight: float = 1.0,
) -> Tensor:
    """One optimisation step on x_natural [B, C, H, W]; updates the student and returns the loss, a scalar."""
    x_adv = reference_inner_loop(student, teacher, x_natural, step_size, num_steps, epsilon)
    optimizer.zero_grad()
    student_logits_natural = student(x_natural)
    student_logits_adv = student(x_adv)
    with torch.no_grad():
        teacher_logits_natural = teacher(x_natural)
        teacher_logits_adv = teacher(x_adv)
    kl_adv = kl_element_mean(student_logits_adv, teacher_logits_adv)
    kl_natural = kl_element_mean(student_logits_natural, teacher_logits_natural)
    loss = adversarial_weight * kl_adv + (1 - adversarial_weight) * kl_natural
    loss.backward()
    optimizer.step()
    return loss.detach()
