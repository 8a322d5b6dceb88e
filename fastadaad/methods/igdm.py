"""IGDM (Lee et al., arXiv 2312.03286): a term that can be added to the loss of any method, as `<method>+igdm`.

With delta = x_adv - x_natural, the term lets the student's logits change along delta as the teacher's logits do. This
approximates matching the gradients of both networks, without second derivatives.
"""

from collections.abc import Callable

from torch import Tensor

from fastadaad.methods.losses import kl_per_image, reduce_mean
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.outer_batch import OuterBatch

Loss = Callable[[OuterBatch, MethodOptions], Tensor]


def igdm_per_image(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a r kl(S(x + delta) - S(x - delta), T(x + delta) - T(x - delta)) [B]; r rises to 1 over igdm_ramp_epochs."""
    student_adv, student_opposite = batch.student_logits("adv", "opposite")
    teacher_adv, teacher_opposite = batch.teacher_logits("adv", "opposite")
    kl = kl_per_image(student_adv - student_opposite, teacher_adv - teacher_opposite)
    return options.igdm_weight_in(batch.epoch) * kl


def add_igdm(loss: Loss) -> Loss:
    """Returns `loss` plus the mean of igdm_per_image."""

    def loss_with_igdm(batch: OuterBatch, options: MethodOptions) -> Tensor:
        if options.igdm_weight == 0:
            return loss(batch, options)
        batch.expected.update(("adv", "opposite"))
        batch.prefetch("adv", "opposite")
        base = loss(batch, options)
        igdm = igdm_per_image(batch, options)
        return base + reduce_mean(igdm, batch.student_logits_adv.shape[1], options.kl_reduction)

    return loss_with_igdm
