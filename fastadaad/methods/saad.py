"""SAAD (Lee and Chung, arXiv 2512.10275): one teacher query per search, and a weight per image.

Low teacher entropy at x_adv means that the perturbation did not transfer to the teacher: the image gets a low weight.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastadaad.methods.igdm import igdm_per_image
from fastadaad.methods.losses import kl_per_image, update_clean_statistics
from fastadaad.methods.objectives import InnerObjective, kl_of_both
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.outer_batch import OuterBatch, Point

# Keeps the scaled weights finite if all images of a batch have the same entropy: the authors' program.
_TINY = 1e-8


class LinearTeacher(NamedTuple):
    """First-order model of the teacher around x_natural: logits [B, N], pixel gradient of the label's logit."""

    logits: Tensor
    label_gradient: Tensor
    x_natural: Tensor
    labels: Tensor


def linear_teacher(
    student: nn.Module, teacher: nn.Module | None, x_natural: Tensor, labels: Tensor | None
) -> LinearTeacher:
    """Evaluates the teacher and the gradient of its label logit at x_natural [B, C, H, W]."""
    assert teacher is not None
    assert labels is not None
    with torch.enable_grad():
        x = x_natural.detach().requires_grad_()
        logits = teacher(x)
        (label_gradient,) = torch.autograd.grad(logits.gather(1, labels[:, None]).sum(), x)
    return LinearTeacher(logits.detach(), label_gradient, x_natural, labels)


def linear_teacher_logits(x_adv: Tensor, target: LinearTeacher) -> Tensor:
    """T(x_natural) [B, N] with the logit of class y moved by its gradient times (x_adv - x_natural)."""
    change = (target.label_gradient * (x_adv - target.x_natural)).flatten(1).sum(dim=1, keepdim=True)
    return target.logits.scatter_add(1, target.labels[:, None], change.to(target.logits.dtype))


KL_TO_LINEAR_TEACHER = InnerObjective(
    fixed_target=linear_teacher,
    logit_gradients=kl_of_both,
    surrogate=linear_teacher_logits,
    teacher_logits_natural=lambda target: target.logits,
)


def renyi_entropy(logits: Tensor, order: float) -> Tensor:
    """Renyi entropy [B] of softmax(logits [B, N]); order 1 is Shannon's entropy."""
    log_probs = logits.float().log_softmax(dim=1)
    if order == 1:
        return torch.special.entr(log_probs.exp()).sum(dim=1)
    return (order * log_probs).logsumexp(dim=1) / (1 - order)


def saad_loss(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """mean_i [ w_i (kl(S(x_adv), T(x_adv)) + igdm_i) + beta (1 - v_i) kl(S(x_natural), T(x_natural)) ].

    w_i = entropy_scale (h_i - min_j h_j) with the entropy h_i of T(x_adv); v = w scaled to [0, 1] over the batch; beta
    = natural_weight.
    """
    points: list[Point] = ["adv", "opposite"] if options.igdm_weight else ["adv"]
    if options.natural_weight:
        points = ["natural", *points]
    else:
        update_clean_statistics(batch, options)
    batch.student_logits(*points)
    batch.teacher_logits(*points)
    entropy = renyi_entropy(batch.teacher_logits_adv, options.renyi_order)
    w = options.entropy_scale * (entropy - entropy.amin())
    kl = kl_per_image(batch.student_logits_adv, batch.teacher_logits_adv)
    if options.igdm_weight:
        kl = kl + igdm_per_image(batch, options)
    loss = w * kl
    if options.natural_weight:
        certainty = 1 - w / (w.amax() + _TINY)
        natural_kl = kl_per_image(batch.student_logits_natural, batch.teacher_logits_natural)
        loss = loss + options.natural_weight * certainty * natural_kl
    return loss.mean()
