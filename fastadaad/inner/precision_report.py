"""What low precision does to the inner loop: pixels that would step another way in fp32, and pixels that stay."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadaad.config import PrecisionConfig
from fastadaad.inner.folded_cache import inner_network
from fastadaad.inner.maximizer import InnerMaximizer, frozen, start_point
from fastadaad.inner.step import pixel_gradient, scaled, tape_vjp
from fastadaad.runtime.precision import gradient_scale, tensor_cores


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """Shares of the pixels of a batch, at the search's first gradient."""

    same_sign: float
    """The gradient's sign is that of fp32, 0 being a sign of its own."""
    zeros: float
    """The gradient is exactly 0: an l_inf step leaves the pixel where it is."""
    zeros_in_fp32: float

    def __str__(self) -> str:
        return (
            f"{self.same_sign:.2%} of the pixel gradients have the sign that fp32 gives them, "
            f"{self.zeros:.2%} are exactly 0 ({self.zeros_in_fp32:.2%} in fp32)"
        )


def is_fp32(precision: PrecisionConfig) -> bool:
    return precision == PrecisionConfig()


def measure(maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor | None, *, seed: int) -> PrecisionReport:
    """The first gradient of the search on x_natural [B, C, H, W] in the maximizer's precision against that in fp32.

    Both in eval mode, by autograd's tape, from the start that `seed` draws; fp32 runs on the networks themselves.
    Waits for the device.
    """
    own, method = maximizer.precision, maximizer.method
    generator = torch.Generator(x_natural.device).manual_seed(seed)
    x_adv = start_point(x_natural, maximizer.inner.start or method.start, maximizer.inner, generator)
    twin = inner_network(maximizer.student, x_natural, maximizer.form(own.student))
    networks = [network for network in (maximizer.student, maximizer.teacher) if network is not None]
    with frozen(*networks):
        low = _gradient(maximizer, own, (twin, maximizer.teacher_network(x_natural)), x_natural, x_adv, labels)
        fp32 = _gradient(maximizer, PrecisionConfig(), (maximizer.student, maximizer.teacher), x_natural, x_adv, labels)
    return PrecisionReport(
        same_sign=_share(low.sign() == fp32.sign()), zeros=_share(low == 0), zeros_in_fp32=_share(fp32 == 0)
    )


def _gradient(
    maximizer: InnerMaximizer,
    precision: PrecisionConfig,
    networks: tuple[nn.Module, nn.Module | None],
    x_natural: Tensor,
    x_adv: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """The pixel gradient at x_adv that the search on `networks` has."""
    objective, (student, teacher) = maximizer.method.objective, networks
    with tensor_cores(precision, x_natural.device):
        with torch.no_grad():
            target = objective.fixed_target(student, teacher, x_natural, labels)
        asked = (student, teacher) if objective.through_teacher and teacher is not None else (student,)
        return pixel_gradient(scaled(tape_vjp, gradient_scale(precision)), asked, objective, x_adv, target)


def _share(mask: Tensor) -> float:
    return mask.double().mean().item()
