"""Stratified subsets, validation splits, and the test images of a shorter evaluation."""

import pytest
import torch

from fastadaad.data import evaluation_subset, split_validation, subset

BALANCED = torch.arange(10).repeat_interleave(60)
SKEWED = torch.tensor([0] * 700 + [1] * 200 + [2] * 97 + [4] * 3)[
    torch.randperm(1000, generator=torch.Generator().manual_seed(0))
]


def test_balanced_subset_holds_each_class_equally_often():
    assert BALANCED[subset(BALANCED, 50, seed=1)].bincount().tolist() == [5] * 10


def test_skewed_subset_holds_each_class_in_proportion():
    counts = SKEWED[subset(SKEWED, 100, seed=1)].bincount(minlength=5)
    assert (counts - torch.tensor([70, 20, 9.7, 0, 0.3])).abs().max() <= 1


def test_subset_is_ascending_nested_and_a_function_of_the_seed():
    small, large = subset(BALANCED, 33, seed=5), subset(BALANCED, 200, seed=5)
    assert torch.equal(small, small.unique())
    assert torch.isin(small, large).all()
    assert torch.equal(small, subset(BALANCED, 33, seed=5))
    assert torch.isin(small, subset(BALANCED, 33, seed=6)).sum() < 10  # 1.8 expected by chance


@pytest.mark.parametrize("size", [0, 1, 137, 600])
def test_split_is_a_partition(size):
    train, validation = split_validation(BALANCED, size, seed=2)
    assert len(validation) == size
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(600))
    assert torch.equal(train, train.sort().values)


def test_draw_within_a_class_is_uniform():
    """Draws each of 20 samples equally often over 2,000 seeds (chi-square, 19 degrees of freedom, 99.9 %: 43.8)."""
    labels = torch.arange(2).repeat(10)
    counts = torch.cat([subset(labels, 4, seed) for seed in range(2000)]).bincount(minlength=20)
    assert (counts - 400).square().sum() / 400 < 43.8


@pytest.mark.parametrize("num_samples", [-1, 601])
def test_impossible_size_is_named(num_samples):
    with pytest.raises(ValueError, match=rf"num_samples {num_samples} is outside 0\.\.600"):
        subset(BALANCED, num_samples, seed=0)


@pytest.mark.parametrize("num_images", [10, 50, 200, 600])
def test_test_images_of_a_sorted_set_show_every_class(num_images):
    chosen = evaluation_subset(BALANCED, num_images)
    assert torch.equal(chosen, chosen.unique())
    assert BALANCED[chosen].bincount(minlength=10).tolist() == [num_images // 10] * 10


def test_test_images_of_another_set_are_the_first_ones():
    assert evaluation_subset(SKEWED, 100).tolist() == list(range(100))
