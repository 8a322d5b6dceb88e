"""Windows of random resized crops against torchvision's RandomResizedCrop, which draws its own numbers."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from fastadaad.data.hashing import Use, uniform
from fastadaad.data.resized_crop import NUM_DRAWS, center_window, resized_crop_windows

NUM_WINDOWS = 6_000


def ours(height: int, width: int, min_scale: float) -> torch.Tensor:
    draws = uniform(0, Use.RESIZED_CROP, 0, torch.arange(NUM_WINDOWS), NUM_DRAWS)
    sizes = np.tile([[height, width]], (NUM_WINDOWS, 1))
    return torch.from_numpy(resized_crop_windows(sizes, draws.numpy(), min_scale))


def torchvisions(height: int, width: int, min_scale: float) -> torch.Tensor:
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draw = [RandomResizedCrop.get_params(image, [min_scale, 1.0], [3 / 4, 4 / 3]) for _ in range(NUM_WINDOWS)]
    return torch.tensor(draw)


@pytest.mark.parametrize(("height", "width", "min_scale"), [(300, 400, 0.08), (90, 260, 0.3), (64, 64, 0.9)])
def test_windows_are_distributed_as_torchvisions(height, width, min_scale):
    for ours_of, theirs_of in zip(
        ours(height, width, min_scale).unbind(1), torchvisions(height, width, min_scale).unbind(1), strict=True
    ):
        values = torch.cat([ours_of, theirs_of]).unique()
        counts = torch.stack(
            [torch.searchsorted(part.sort().values, values, right=True) for part in (ours_of, theirs_of)]
        )
        distance = (counts[0] - counts[1]).abs().max() / NUM_WINDOWS
        # Kolmogorov-Smirnov: 99.9 % of pairs of samples of one distribution are closer.
        assert distance < math.sqrt(-math.log(0.001 / 2) / NUM_WINDOWS)


def test_every_window_is_inside_and_of_an_allowed_shape():
    windows = ours(300, 400, 0.08)
    top, left, height, width = windows.unbind(1)
    assert (top.min(), left.min()) == (0, 0)
    assert ((top + height) <= 300).all()
    assert ((left + width) <= 400).all()
    ratio = width / height
    assert 0.74 < ratio.min() < ratio.max() < 1.35
    assert (width * height / (300 * 400)).min() > 0.079


@pytest.mark.parametrize(("height", "width", "expected"), [(10, 500, (0, 243, 10, 13)), (500, 10, (243, 0, 13, 10))])
def test_if_no_try_fits_the_largest_allowed_window_in_the_center_is_taken(height, width, expected):
    assert set(map(tuple, ours(height, width, 0.9).tolist())) == {expected}
    assert set(map(tuple, torchvisions(height, width, 0.9).tolist())) == {expected}


def test_the_center_window_is_a_square():
    assert center_window(300, 400, 1.0) == (0, 50, 300, 300)
    assert center_window(400, 300, 0.875) == (69, 19, 262, 262)
    assert center_window(1, 3, 0.1) == (0, 1, 1, 1)
