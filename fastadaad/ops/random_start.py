"""The random start of the inner loop, in place."""

from math import inf

from torch import Tensor

from . import checks
from .registration import fake_in_place, register


def random_start_(
    x_adv: Tensor, x_natural: Tensor, noise: Tensor, scale: float, lower: float = -inf, upper: float = inf
) -> Tensor:
    """x_natural + scale noise, clamped to [lower, upper]; the default does not clamp.

    Args:
        x_adv: fp32 [B, ...], any layout; overwritten.
        x_natural: fp32, the shape of x_adv, any layout.
        noise: fp32, fp16 or bf16, the shape of x_adv, any layout.
        scale: Factor of the noise, in pixel units; may be negative.
        lower: Smallest pixel value.
        upper: Largest pixel value.

    Returns:
        x_adv.

    Raises:
        ValueError: An argument has the wrong shape, dtype, device or value.
    """
    checks.check_pixels(x_adv, x_natural, "noise", noise)
    if not -inf < scale < inf:
        raise ValueError(f"scale is {scale}: it must be a finite number, in pixel units")
    checks.check_range(lower, upper)
    _op(x_adv.detach(), x_natural.detach(), noise.detach(), scale, lower, upper)
    return x_adv


def random_start_ref(x_adv: Tensor, x_natural: Tensor, noise: Tensor, scale: float, lower: float, upper: float) -> None:
    """Reference of random_start_ in plain torch; mutates x_adv."""
    x_adv.copy_((x_natural + scale * noise.float()).clamp(lower, upper))


_op = register(
    "random_start_(Tensor(a!) x_adv, Tensor x_natural, Tensor noise, float scale, float lower, float upper) -> ()",
    random_start_ref,
    fake_in_place,
)
