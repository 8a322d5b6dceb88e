"""The random start of the inner loop, in place."""

from math import inf

from torch import Tensor

from . import checks
from .registration import fake_in_place, register


def random_start_(
    x_adv: Tensor, x_natural: Tensor, noise: Tensor, scale: float, lower: float = -inf, upper: float = inf
) -> Tensor:
    """x_natural + scale noise, clamped to [lower, upper]; the default does not clamp.

    x_adv (overwritten and returned), x_natural: fp32 [B, ...]; noise: fp32, fp16 or bf16 of the same shape; any
    layouts. scale: pixel units, may be negative. Raises ValueError for arguments that do not fit.
    """
    checks.check_pixels(x_adv, x_natural, "noise", noise)
    if not -inf < scale < inf:
        raise ValueError(f"scale is {scale}: it must be a finite number, in pixel units")
    checks.check_range(lower, upper)
    _op(x_adv.detach(), x_natural.detach(), noise.detach(), scale, lower, upper)
    return x_adv


def random_start_ref(x_adv: Tensor, x_natural: Tensor, noise: Tensor, scale: float, lower: float, upper: float) -> None:
    """random_start_ in plain torch: mutates x_adv, returns nothing."""
    x_adv.copy_((x_natural + scale * noise.float()).clamp(lower, upper))


_op = register(
    "random_start_(Tensor(a!) x_adv, Tensor x_natural, Tensor noise, float scale, float lower, float upper) -> ()",
    random_start_ref,
    fake_in_place,
)
