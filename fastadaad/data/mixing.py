"""Mixup, CutMix and label smoothing of a finished batch: pure functions of (seed, epoch, batch number).

An image is mixed with the one that lies half of the batch further on. Rank r of n has rows r, r + n, ... of a batch, so
with an even number of images per rank both are on one rank, and all ranks make the batch of a single process.
"""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastadaad.config import check_numbers
from fastadaad.data.hashing import Use, hash_bits


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Mixing of the images and labels of a batch; labels become distributions, fp32 [B, N].

    With mixup and cutmix, each batch gets one of them, with probability 1/2.

    Attributes:
        num_classes: Number of classes N.
        label_smoothing: Fraction of each label that is spread evenly over all classes.
        mixup: alpha of mixup (Zhang et al., 2018): weights of two images from Beta(alpha, alpha); 0: no mixup.
        cutmix: alpha of CutMix (Yun et al., 2019): the area of a box of the other image is 1 - w, w from
            Beta(alpha, alpha); 0: no CutMix.

    Raises:
        ValueError: A number is not finite.
    """

    num_classes: int
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        check_numbers(self)


class Mixture(NamedTuple):
    """Mixture of each image of a batch with another one."""

    weight: float
    """Weight of the image's own label; the other label has 1 - weight."""
    box: tuple[slice, slice] | None
    """Rows and columns of the other image that replace its own; None: all pixels are averaged by weight."""


def draw_mixture(mixing: Mixing, seed: int, epoch: int, batch_number: int, height: int, width: int) -> Mixture:
    """Draws the mixture of a batch on the host: it is the same on all ranks and devices.

    Args:
        mixing: Settings, with mixup or cutmix.
        seed: Seed, 0 <= seed < 2**63.
        epoch: Epoch number, from 0.
        batch_number: Number of the batch in its epoch, from 0.
        height: Rows of an image in pixels.
        width: Columns of an image in pixels.
    """
    draws = random.Random(hash_bits(seed, Use.MIXING, epoch, torch.tensor(batch_number, device="cpu")).item())
    cuts = bool(mixing.cutmix) and (not mixing.mixup or draws.random() < 0.5)
    concentration = mixing.cutmix if cuts else mixing.mixup
    weight = draws.betavariate(concentration, concentration)
    if not cuts:
        return Mixture(weight, None)
    side = math.sqrt(1 - weight)
    rows, columns = (_interval(size, side, draws.randrange(size)) for size in (height, width))
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return Mixture(1 - area / (height * width), (rows, columns))


def _interval(size: int, fraction: float, center: int) -> slice:
    """Returns the part of 0..size - 1 that is `fraction` long around `center`, cut off at the border."""
    length = int(size * fraction)
    start = center - length // 2
    return slice(max(start, 0), min(start + length, size))


def mix(
    mixing: Mixing, seed: int, epoch: int, batch_number: int, x_natural: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Mixes a batch, without host synchronisation.

    Args:
        mixing: Settings.
        seed: Seed of the draws.
        epoch: Epoch number, from 0.
        batch_number: Number of the batch in its epoch, from 0.
        x_natural: Images, fp32 [B, C, H, W].
        labels: Class numbers, int64 [B].

    Returns:
        The mixed images, and label distributions fp32 [B, N].
    """
    targets = labels.new_zeros((len(labels), mixing.num_classes), dtype=torch.float32)
    targets.scatter_(1, labels[:, None], 1.0)
    if mixing.mixup or mixing.cutmix:
        mixture = draw_mixture(mixing, seed, epoch, batch_number, *x_natural.shape[2:])
        half = len(labels) // 2
        targets = targets.lerp(targets.roll(half, 0), 1 - mixture.weight)
        x_natural = _mixed(x_natural, x_natural.roll(half, 0), mixture)
    if mixing.label_smoothing:
        targets = targets.lerp(torch.full_like(targets, 1 / mixing.num_classes), mixing.label_smoothing)
    return x_natural, targets


def _mixed(x_natural: Tensor, others: Tensor, mixture: Mixture) -> Tensor:
    """Mixes images [B, C, H, W] with the others of the same shape."""
    if mixture.box is None:
        return x_natural.lerp(others, 1 - mixture.weight)
    rows, columns = mixture.box
    mixed = x_natural.clone()
    mixed[:, :, rows, columns] = others[:, :, rows, columns]
    return mixed
