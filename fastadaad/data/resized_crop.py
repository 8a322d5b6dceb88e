"""Windows of random resized crops: torchvision's RandomResizedCrop as a function of uniform random numbers.

Source: Szegedy et al. 2015, "Going deeper with convolutions", section 6.
"""

import math

import numpy as np

NUM_TRIES = 10
NUM_DRAWS = 2 * NUM_TRIES + 2  # an area and an aspect ratio for each try, then a place
MIN_RATIO, MAX_RATIO = 3 / 4, 4 / 3  # of width to height


def resized_crop_windows(sizes: np.ndarray, draws: np.ndarray, min_scale: float) -> np.ndarray:
    """Computes a random window per image.

    The window keeps a fraction of the area uniform in [min_scale, 1], with a ratio of width to height log-uniform in
    [3/4, 4/3]. The first try that fits the image is taken; if no try fits, the largest window of an allowed ratio in
    the center.

    Args:
        sizes: Heights and widths, int64 [B, 2].
        draws: Random numbers in [0, 1), float32 [B, NUM_DRAWS].
        min_scale: Smallest fraction of the area.

    Returns:
        (top, left, height, width), int64 [B, 4].
    """
    draws = draws.astype(np.float64)
    area = sizes.prod(axis=1, keepdims=True) * (min_scale + (1 - min_scale) * draws[:, :NUM_TRIES])
    log_ratio = math.log(MIN_RATIO) + (math.log(MAX_RATIO) - math.log(MIN_RATIO)) * draws[:, NUM_TRIES : 2 * NUM_TRIES]
    ratio = np.exp(log_ratio)
    tried = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], axis=2))).astype(np.int64)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(axis=2)
    found = fits.any(axis=1, keepdims=True)
    shape = np.where(found, tried[np.arange(len(tried)), fits.argmax(axis=1)], _largest(sizes))
    corner = ((sizes - shape + 1) * draws[:, 2 * NUM_TRIES :]).astype(np.int64)
    corner = np.where(found, corner, (sizes - shape) // 2)
    return np.concatenate([corner, shape], axis=1)


def _largest(sizes: np.ndarray) -> np.ndarray:
    """Returns height and width of the largest window of an allowed ratio in images of `sizes` [B, 2]."""
    others = np.rint(sizes[:, ::-1] * (1 / MIN_RATIO, MAX_RATIO)).astype(np.int64)
    return np.minimum(sizes, others)


def center_window(height: int, width: int, fraction: float) -> tuple[int, int, int, int]:
    """Returns (top, left, height, width) of the center square, whose side is a fraction of the shorter side."""
    side = max(1, round(fraction * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side
