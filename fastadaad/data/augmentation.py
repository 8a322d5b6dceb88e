"""Random crops, flips, cutouts, colours and operations on images: pure functions of (seed, epoch, sample)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad.config import AutoAugment, check_numbers
from fastadaad.data.hashing import Use, flag, hash_bits, integer, uniform
from fastadaad.data.resized_crop import NUM_DRAWS as RESIZED_CROP_DRAWS


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of training images, applied in the order of the attributes; the default changes nothing.

    Attributes:
        min_crop_scale: Smallest fraction of the area that a random resized crop of an image file keeps; 1: center crop.
        padding: Black pixels added on each side before a random crop to the old size.
        flip: Random horizontal flips.
        auto_augment: RandAugment or TrivialAugment as torchvision has them, in the torch engine alone; None: neither.
        color_jitter: Brightness, contrast and saturation of image files are multiplied by factors in
            [1 - color_jitter, 1 + color_jitter].
        cutout: Side in pixels of a black square at a random place, which may cross the border; 0: no square.

    Raises:
        ValueError: A number is not finite, or a number of pixels is not an integer.
    """

    min_crop_scale: float = 1.0
    padding: int = 0
    flip: bool = False
    auto_augment: AutoAugment | None = None
    color_jitter: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Random numbers of B samples; None for a disabled augmentation.

    Attributes:
        top: int64 [B] in [0, 2 * padding], first row of the crop in the padded image.
        left: int64 [B], first column of the crop.
        flip: bool [B].
        cutout_center: int64 [B, 2], row and column in the finished crop.
        resized_crop: float32 [B, RESIZED_CROP_DRAWS] in [0, 1), see resized_crop.py.
        color: float32 [B, 3], factors of brightness, contrast and saturation.
        auto_augment: int64 [B], seeds of the generators from which torchvision draws operations and strengths.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    cutout_center: Tensor | None = None
    resized_crop: Tensor | None = None
    color: Tensor | None = None
    auto_augment: Tensor | None = None


def draw(augmentation: Augmentation, seed: int, epoch: int, indices: Tensor, height: int, width: int) -> Draws:
    """Draws the random numbers of samples in an epoch.

    Args:
        augmentation: Augmentation that needs the numbers.
        seed: Seed, 0 <= seed < 2**63.
        epoch: Epoch number, from 0.
        indices: Samples, int64 [B].
        height: Rows of an image in pixels.
        width: Columns of an image in pixels.

    Returns:
        Draws on the device of `indices`. Crop corners are uniform to within 2**-24; flip has probability 1/2, or 0 if
        augmentation.flip is False.
    """
    bits = hash_bits(seed, Use.AUGMENTATION, epoch, indices)
    num_offsets = 2 * augmentation.padding + 1
    center = resized_crop = color = auto_augment = None
    if augmentation.cutout:
        place = hash_bits(seed, Use.CUTOUT, epoch, indices)
        center = torch.stack([integer(place, 0, height), integer(place, 1, width)], dim=1)
    if augmentation.min_crop_scale < 1:
        resized_crop = uniform(seed, Use.RESIZED_CROP, epoch, indices, RESIZED_CROP_DRAWS)
    if augmentation.color_jitter:
        color = 1 + augmentation.color_jitter * (2 * uniform(seed, Use.COLOR, epoch, indices, 3) - 1)
    if augmentation.auto_augment is not None:
        auto_augment = hash_bits(seed, Use.AUTO_AUGMENT, epoch, indices)
    return Draws(
        top=integer(bits, 0, num_offsets),
        left=integer(bits, 1, num_offsets),
        flip=flag(bits) & augmentation.flip,
        cutout_center=center,
        resized_crop=resized_crop,
        color=color,
        auto_augment=auto_augment,
    )
