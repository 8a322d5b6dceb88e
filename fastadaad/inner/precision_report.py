"""Effect of low precision on the inner loop: pixel gradients whose sign differs from fp32, and pixels that stay."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastadaad.config import PrecisionConfig
from fastadaad.inner.folded_cache import folded_copy
from fastadaad.inner.frozen import frozen
from fastadaad.inner.maximizer import InnerMaximizer, Networks
from fastadaad.inner.search import tape_vjp
from fastadaad.runtime.precision import STRICT_FP32, gradient_scale, tensor_cores


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """Fractions of the pixels of a batch, at the search's first gradient."""

    same_sign: float
    """Fraction of pixel gradients that have the sign of fp32; 0 counts as a sign of its own."""
    zeros: float
    """Fraction of pixel gradients that are exactly 0: an linf step leaves the pixel unchanged."""
    zeros_in_fp32: float
    """The same fraction in fp32."""

    def __str__(self) -> str:
        return (
            f"{self.same_sign:.2%} of the pixel gradients have the sign that fp32 gives them, "
            f"{self.zeros:.2%} are exactly 0 ({self.zeros_in_fp32:.2%} in fp32)"
        )


def is_fp32(precision: PrecisionConfig) -> bool:
    """Returns True if both networks are in fp32."""
    return precision == STRICT_FP32


def measure(maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor | None, *, seed: int) -> PrecisionReport:
    """Compares the first pixel gradient of a search in the maximizer's precision with the one in fp32.

    Both are taken in eval mode by autograd's tape, from the same start; fp32 runs on the networks themselves. Waits for
    the device.

    Args:
        maximizer: Search with its networks and precision.
        x_natural: Natural images, fp32 [B, C, H, W].
        labels: Class numbers [B] for methods that need them.
        seed: Seed of the start.
    """
    x_adv = maximizer.start_point(x_natural, torch.Generator(x_natural.device).manual_seed(seed))
    low, fp32 = pixel_gradients(maximizer, x_natural, labels, x_adv)
    return PrecisionReport(
        same_sign=_fraction(low.sign() == fp32.sign()), zeros=_fraction(low == 0), zeros_in_fp32=_fraction(fp32 == 0)
    )


def pixel_gradients(
    maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor | None, x_adv: Tensor
) -> tuple[Tensor, Tensor]:
    """Pixel gradients at x_adv [B, C, H, W] on the folded copies in the maximizer's precision, and on the networks.

    Both are taken in eval mode by autograd's tape; the networks themselves run in fp32.
    """
    student, teacher = maximizer.student, maximizer.teacher
    folded = folded_copy(student, x_natural, maximizer.form("student")), maximizer.teacher_network(x_natural)
    with frozen(*[network for network in (student, teacher) if network is not None]):
        low = _gradient(maximizer, maximizer.precision, folded, x_natural, x_adv, labels)
        fp32 = _gradient(maximizer, STRICT_FP32, (student, teacher), x_natural, x_adv, labels)
    return low, fp32


def _gradient(
    maximizer: InnerMaximizer,
    precision: PrecisionConfig,
    networks: Networks,
    x_natural: Tensor,
    x_adv: Tensor,
    labels: Tensor | None,
) -> Tensor:
    """Pixel gradient at x_adv of a search on `networks`."""
    with tensor_cores(precision, x_natural.device):
        search = maximizer.new_search(networks, x_natural, labels)
        search = replace(search, vjp=tape_vjp, gradient_scale=gradient_scale(precision))
        *_, (first, *others) = search.pixel_gradients(x_adv)
        return sum(others, start=first)


def _fraction(mask: Tensor) -> float:
    return mask.double().mean().item()
