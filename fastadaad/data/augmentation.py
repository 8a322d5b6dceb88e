"""How the images of an epoch are cropped, mirrored, cut out and coloured: pure functions of (seed, epoch, sample)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad.data.hashing import Use, flag, hash_bits, integer, uniform
from fastadaad.data.resized_crop import NUM_DRAWS as RESIZED_CROP_DRAWS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a training image, in this order; the default is nothing."""

    min_crop_scale: float = 1.0
    """Random resized crops of image files of at least this share of the area; 1: the centre of the image instead."""
    padding: int = 0
    """Random crops of the image padded by so many black pixels on each side."""
    flip: bool = False
    """Random horizontal flips."""
    color_jitter: float = 0.0
    """Of image files: brightness, contrast and saturation are multiplied by factors in [1 - it, 1 + it]."""
    cutout: int = 0
    """Side in pixels of a black square at a random place, partly outside near the border; 0: none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """The random numbers of B samples; None where the augmentation needs none."""

    top: Tensor
    """int64 [B] in [0, 2 padding]: first row of the crop in the padded image."""
    left: Tensor
    flip: Tensor
    """bool [B]."""
    cutout_center: Tensor | None = None
    """int64 [B, 2], a row and a column of the finished crop."""
    resized_crop: Tensor | None = None
    """float32 [B, RESIZED_CROP_DRAWS] in [0, 1), see resized_crop.py."""
    color: Tensor | None = None
    """float32 [B, 3]: the factors of brightness, contrast and saturation."""


def draw(augmentation: Augmentation, seed: int, epoch: int, indices: Tensor, height: int, width: int) -> Draws:
    """The draws of the samples `indices` int64 [B] in an epoch, on their device, for images of height x width.

    Crop corners are uniform to within 2**-24; a mirror flag has probability 1/2, or 0 without `flip`.
    """
    bits = hash_bits(seed, Use.AUGMENTATION, epoch, indices)
    num_offsets = 2 * augmentation.padding + 1
    center = resized_crop = color = None
    if augmentation.cutout:
        place = hash_bits(seed, Use.CUTOUT, epoch, indices)
        center = torch.stack([integer(place, 0, height), integer(place, 1, width)], dim=1)
    if augmentation.min_crop_scale < 1:
        resized_crop = uniform(seed, Use.RESIZED_CROP, epoch, indices, RESIZED_CROP_DRAWS)
    if augmentation.color_jitter:
        color = 1 + augmentation.color_jitter * (2 * uniform(seed, Use.COLOR, epoch, indices, 3) - 1)
    return Draws(
        top=integer(bits, 0, num_offsets),
        left=integer(bits, 1, num_offsets),
        flip=flag(bits) & augmentation.flip,
        cutout_center=center,
        resized_crop=resized_crop,
        color=color,
    )
