"""Spot check of the search's fast path: signs of its pixel gradients against those of the networks themselves.

A folded copy is compared with its network when it is made. What changes later without being noticed, such as a global
variable that forward reads, shows here: on a few images, at the first step and at random ones.
"""

import random
import warnings

import torch
from torch import Tensor

from fastadaad.config import PrecisionConfig
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.precision_report import is_fp32, pixel_gradients

INTERVAL = 200  # steps between two checks, on average
NUM_IMAGES = 4
# Fractions of equal signs below which the check warns. In low precision small gradients lose their sign; see the
# fractions of `precision.json`.
LEAST_IN_FP32 = 0.9
LEAST_IN_LOW_PRECISION = 0.6


class SpotCheck:
    """Counts equal signs on the device, and reads them when it is asked to.

    Args:
        precision: Arithmetic of the networks in the search.
        device: Device of the networks.
    """

    def __init__(self, precision: PrecisionConfig, device: torch.device) -> None:
        self.least = LEAST_IN_FP32 if is_fp32(precision) else LEAST_IN_LOW_PRECISION
        self.sums = torch.zeros(2, device=device)
        """Number of equal signs, and of pixels; add writes to it in place."""

    def is_due(self, step: int) -> bool:
        """Returns True at step 0 and at random steps, the same ones in each run."""
        return step == 0 or random.Random(step).random() < 1 / INTERVAL

    def add(self, maximizer: InnerMaximizer, x_natural: Tensor, labels: Tensor | None, x_adv: Tensor) -> None:
        """Compares the gradients of a search at x_adv, on its first images. No host synchronisation."""
        first = slice(NUM_IMAGES)
        fast, own = pixel_gradients(
            maximizer, x_natural[first], None if labels is None else labels[first], x_adv[first]
        )
        moves = own != 0  # an exact 0 leaves the pixel, and rounding decides the sign of its neighbours
        equal = (fast.sign() == own.sign()) & moves
        self.sums += torch.stack([equal.sum(), moves.sum()])

    def read(self, remedy: str = "set fold=False") -> float | None:
        """Returns the fraction of equal signs since the last read, None without a check. Waits for the device.

        Warns, with the remedy, if the fraction is too small for rounding.
        """
        equal, pixels = self.sums.tolist()
        self.sums.zero_()
        if not pixels:
            return None
        fraction = equal / pixels
        if fraction < self.least:
            warnings.warn(
                f"only {fraction:.1%} of the pixel gradients of the folded copies have the networks' own sign: the "
                f"networks change in a way that the copies do not see; {remedy}",
                stacklevel=2,
            )
        return fraction
