"""The hashes behind order and augmentation: published values, distribution, and dependence on nothing but arguments."""

import pytest
import torch

from fastadaad.data.augmentation import Use, augmentation, epoch_order, hash_bits, splitmix64

WORD = 2**64 - 1
CHI_SQUARE_999 = {161: 222.6, 99: 148.2}  # 99.9 % quantiles by degrees of freedom


def unsigned(bits: torch.Tensor) -> list[int]:
    return [number & WORD for number in bits.tolist()]


def splitmix64_of_integers(state: int, index: int) -> int:
    """The generator with unbounded integers."""
    z = (state + (index + 1) * 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def chi_square(cells: torch.Tensor, num_cells: int) -> float:
    expected = len(cells) / num_cells
    return float((cells.bincount(minlength=num_cells) - expected).square().sum() / expected)


@pytest.mark.parametrize(
    ("state", "published"),
    [
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]),
    ],
)
def test_splitmix64_gives_the_published_numbers(state, published):
    assert unsigned(splitmix64(torch.tensor(state), torch.arange(3))) == published


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (3, 199), (2**63 - 1, 2**40)])
def test_hash_bits_equal_unbounded_integer_arithmetic(seed, epoch):
    state = 0
    for number in (seed, 2, epoch):
        state = splitmix64_of_integers(state ^ number, 0)
    indices = [0, 1, 59_999, 2**31, 2**62]
    expected = [splitmix64_of_integers(state, index) for index in indices]
    assert unsigned(hash_bits(seed, Use.AUGMENTATION, epoch, torch.tensor(indices))) == expected


def test_golden_values():
    """A change of these numbers changes every run: it needs an entry in the change log."""
    top, left, flip = augmentation(seed=7, epoch=3, indices=torch.arange(8), padding=4, flip=True)
    assert top.tolist() == [0, 3, 8, 2, 3, 1, 8, 8]
    assert left.tolist() == [0, 2, 3, 3, 3, 3, 8, 4]
    assert flip.int().tolist() == [1, 1, 0, 0, 0, 0, 1, 0]
    assert epoch_order(7, 3, 10).tolist() == [5, 1, 2, 3, 7, 9, 6, 0, 4, 8]


def test_crops_and_flips_are_uniform_over_samples():
    top, left, flip = augmentation(1, 0, torch.arange(200_000), 4, True)
    assert chi_square((top * 9 + left) * 2 + flip, 162) < CHI_SQUARE_999[161]


def test_crops_and_flips_of_one_sample_are_uniform_over_epochs():
    corners = [torch.stack(augmentation(1, epoch, torch.tensor([5]), 4, True)) for epoch in range(4000)]
    top, left, flip = torch.cat(corners, dim=1)
    assert chi_square((top * 9 + left) * 2 + flip, 162) < CHI_SQUARE_999[161]


def test_sample_at_the_head_of_an_epoch_is_uniform():
    heads = torch.stack([epoch_order(2, epoch, 100)[0] for epoch in range(4000)])
    assert chi_square(heads, 100) < CHI_SQUARE_999[99]


@pytest.mark.parametrize(
    ("use", "seed", "epoch"), [(Use.ORDER, 1, 0), (Use.AUGMENTATION, 2, 0), (Use.AUGMENTATION, 1, 1)]
)
def test_streams_are_uncorrelated(use, seed, epoch):
    indices = torch.arange(50_000)
    pair = torch.stack([hash_bits(1, Use.AUGMENTATION, 0, indices), hash_bits(seed, use, epoch, indices)])
    assert torch.corrcoef(pair.double())[0, 1].abs() < 4 / len(indices) ** 0.5  # four standard deviations
    agreeing_bits = sum(64 - bin(a ^ b).count("1") for a, b in zip(*map(unsigned, pair), strict=True))
    assert agreeing_bits / (64 * len(indices)) == pytest.approx(0.5, abs=0.002)


def test_numbers_do_not_depend_on_the_batch():
    whole = augmentation(3, 4, torch.arange(1000), 2, True)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for batch in (*shuffled.split(7), torch.arange(0)):
        for part, full in zip(augmentation(3, 4, batch, 2, True), whole, strict=True):
            assert torch.equal(part, full[batch])


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [epoch_order(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert all((orders[0] == other).sum() < 10 for other in orders[1:])  # 1 expected by chance
    assert epoch_order(0, 0, 0).shape == (0,)


def test_without_padding_and_flip_nothing_moves():
    top, left, flip = augmentation(0, 0, torch.arange(100), 0, False)
    assert not top.any()
    assert not left.any()
    assert not flip.any()
    assert (top.dtype, left.dtype, flip.dtype) == (torch.int64, torch.int64, torch.bool)


@pytest.mark.parametrize(
    ("seed", "epoch", "named"), [(-1, 0, "seed -1"), (2**63, 0, "seed 9223372036854775808"), (0, -2, "epoch -2")]
)
def test_negative_and_oversized_numbers_are_named(seed, epoch, named):
    with pytest.raises(ValueError, match=f"^{named} is outside .*: choose a non-negative"):
        epoch_order(seed, epoch, 3)
