"""Windows of random resized crops: torchvision's RandomResizedCrop as a function of given uniform numbers.

Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
"""

import math

import torch
from torch import Tensor

NUM_TRIES = 10
NUM_DRAWS = 2 * NUM_TRIES + 2  # an area and an aspect ratio for each try, then a place
MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3  # of width to height


def resized_crop_windows(sizes: Tensor, draws: Tensor, min_scale: float) -> Tensor:
    """(top, left, height, width) int64 [B, 4] of the windows in images of `sizes` int64 [B, 2], height and width.

    draws: float32 [B, NUM_DRAWS] in [0, 1). A window has a share of the area uniform in [min_scale, 1] and a ratio of
    width to height log-uniform in [3/4, 4/3]: the first try that fits the image. Where none does, it is the largest
    window of an allowed ratio in the middle.
    """
    height, width = sizes.double().unsqueeze(2).unbind(1)  # [B, 1] each
    area, ratio = draws[:, : 2 * NUM_TRIES].double().unflatten(1, (2, NUM_TRIES)).unbind(1)
    area = height * width * (min_scale + (1 - min_scale) * area)
    ratio = torch.exp(math.log(MIN_RATIO) + (math.log(MAX_RATIO) - math.log(MIN_RATIO)) * ratio)
    tried = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=2).round().long()
    fits = ((tried > 0) & (tried <= sizes.unsqueeze(1))).all(2)
    first = fits.long().argmax(1)
    shape = torch.where(fits.any(1, keepdim=True), tried[torch.arange(len(tried)), first], _largest(sizes))
    corner = ((sizes - shape + 1) * draws[:, 2 * NUM_TRIES :].double()).long()
    corner = torch.where(fits.any(1, keepdim=True), corner, (sizes - shape) // 2)
    return torch.cat([corner, shape], dim=1)


def _largest(sizes: Tensor) -> Tensor:
    """Height and width of the largest window of an allowed ratio in images of `sizes` [B, 2]."""
    height, width = sizes.double().unbind(1)
    return torch.stack(
        [torch.minimum(height, (width / MIN_RATIO).round()), torch.minimum(width, (height * MAX_RATIO).round())], dim=1
    ).long()


def center_window(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the square in the middle, its side `share` of the shorter side."""
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side
