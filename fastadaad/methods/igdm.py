"""IGDM (Lee et al., arXiv 2312.03286): a term that adds to the loss of any method, in fastadaad `<method>+igdm`.

With delta = x_adv - x_natural, the student's logits are to change along delta as the teacher's do: what matching the
two networks' gradients would ask for, without second derivatives.
"""

from collections.abc import Callable

from torch import Tensor

from fastadaad.methods.losses import kl_per_image, mean_over_images
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.outer_batch import OuterBatch

Loss = Callable[[OuterBatch, MethodOptions], Tensor]


def igdm_per_image(batch: OuterBatch, options: MethodOptions) -> Tensor:
    """a r kl(S(x + delta) - S(x - delta), T(x + delta) - T(x - delta)) [B], r rising to 1 over igdm_ramp_epochs."""
    student_adv, student_opposite = batch.student_logits("adv", "opposite")
    teacher_adv, teacher_opposite = batch.teacher_logits("adv", "opposite")
    kl = kl_per_image(student_adv - student_opposite, teacher_adv - teacher_opposite)
    return igdm_weight(batch.epoch, options) * kl


def igdm_weight(epoch: int, options: MethodOptions) -> float:
    """a r: what the term counts for in `epoch`."""
    ramp = min((epoch + 1) / options.igdm_ramp_epochs, 1.0) if options.igdm_ramp_epochs else 1.0
    return options.igdm_weight * ramp


def add_igdm(loss: Loss) -> Loss:
    """`loss` with the mean of igdm_per_image on top."""

    def loss_with_igdm(batch: OuterBatch, options: MethodOptions) -> Tensor:
        if options.igdm_weight == 0:
            return loss(batch, options)
        batch.expect("adv", "opposite")
        base = loss(batch, options)
        igdm = igdm_per_image(batch, options)
        return base + mean_over_images(igdm, batch.student_logits_adv.shape[1], options.kl_reduction)

    return loss_with_igdm
