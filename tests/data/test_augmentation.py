"""Draws of the augmentation: their distribution, and that they depend only on (seed, epoch, sample)."""

from dataclasses import fields

import torch

from fastadaad.data.augmentation import Augmentation, Draws, draw
from fastadaad.data.resized_crop import NUM_DRAWS

CHI_SQUARE_999 = {161: 222.6, 62: 101.2}  # 99.9 % quantiles by degrees of freedom
EVERYTHING = Augmentation(
    padding=4, flip=True, cutout=3, min_crop_scale=0.1, color_jitter=0.4, auto_augment="randaugment"
)


def drawn(seed: int = 0, epoch: int = 0, indices=64, augmentation: Augmentation = EVERYTHING) -> Draws:
    """Draws for images of 7x9 pixels."""
    indices = torch.arange(indices) if isinstance(indices, int) else indices
    return draw(augmentation, seed, epoch, indices, 7, 9)


def chi_square(cells: torch.Tensor, num_cells: int) -> float:
    expected = len(cells) / num_cells
    return float((cells.bincount(minlength=num_cells) - expected).square().sum() / expected)


def cells_of_crops(draws: Draws) -> torch.Tensor:
    return (draws.top * 9 + draws.left) * 2 + draws.flip


def test_golden_values():
    """Changing these numbers changes every run and needs an entry in the change log."""
    draws = drawn(seed=7, epoch=3, indices=8)
    assert draws.top.tolist() == [0, 3, 8, 2, 3, 1, 8, 8]
    assert draws.left.tolist() == [0, 2, 3, 3, 3, 3, 8, 4]
    assert draws.flip.int().tolist() == [1, 1, 0, 0, 0, 0, 1, 0]


def test_crops_and_flips_are_uniform_over_samples():
    assert chi_square(cells_of_crops(drawn(seed=1, indices=200_000)), 162) < CHI_SQUARE_999[161]


def test_crops_and_flips_of_one_sample_are_uniform_over_epochs():
    crops = Augmentation(padding=4, flip=True)
    cells = [cells_of_crops(drawn(1, epoch, torch.tensor([5]), crops)) for epoch in range(4000)]
    assert chi_square(torch.cat(cells), 162) < CHI_SQUARE_999[161]


def test_centres_of_cutouts_are_uniform_over_the_image_and_independent_of_the_crops():
    draws = drawn(seed=2, indices=100_000)
    assert chi_square(draws.cutout_center[:, 0] * 9 + draws.cutout_center[:, 1], 63) < CHI_SQUARE_999[62]
    pairs = torch.stack([draws.cutout_center[:, 0].double(), draws.top.double()])
    assert torch.corrcoef(pairs)[0, 1].abs() < 4 / 100_000**0.5


def test_colour_factors_span_their_interval():
    color = drawn(indices=20_000).color
    assert color.shape == (20_000, 3)
    assert (round(color.min().item(), 2), round(color.max().item(), 2)) == (0.6, 1.4)
    assert (color.mean(0) - 1).abs().max() < 4 * 0.8 / (12 * 20_000) ** 0.5


def test_numbers_do_not_depend_on_the_batch():
    whole = drawn(3, 4, 1000)
    assert whole.resized_crop.shape == (1000, NUM_DRAWS)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for batch in (*shuffled.split(70), torch.arange(0)):
        part = drawn(3, 4, batch)
        for name in (field.name for field in fields(Draws)):
            assert torch.equal(getattr(part, name), getattr(whole, name)[batch]), name


def test_the_default_augmentation_draws_nothing():
    draws = drawn(augmentation=Augmentation())
    assert not draws.top.any()
    assert not draws.left.any()
    assert not draws.flip.any()
    assert (draws.top.dtype, draws.left.dtype, draws.flip.dtype) == (torch.int64, torch.int64, torch.bool)
    assert draws.cutout_center is draws.resized_crop is draws.color is None
