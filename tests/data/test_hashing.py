"""Hashes behind every random number of the data: published values and distribution."""

import pytest
import torch

from fastadaad.data.hashing import Use, epoch_order, flag, hash_bits, integer, splitmix64, uniform

WORD = 2**64 - 1
CHI_SQUARE_999 = {99: 148.2}  # 99.9 % quantiles by degrees of freedom


def unsigned(bits: torch.Tensor) -> list[int]:
    return [number & WORD for number in bits.tolist()]


def splitmix64_of_integers(state: int, index: int) -> int:
    """Computes the generator with unbounded integers."""
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


def test_golden_order():
    """Changing these numbers changes every run and needs an entry in the change log."""
    assert epoch_order(7, 3, 10).tolist() == [5, 1, 2, 3, 7, 9, 6, 0, 4, 8]


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


def test_uniform_numbers_fill_the_unit_interval_independently():
    numbers = uniform(1, Use.COLOR, 2, torch.arange(20_000), 3)
    assert (numbers.dtype, numbers.shape) == (torch.float32, (20_000, 3))
    assert 0 <= numbers.min() < 1e-3 < 1 - 1e-3 < numbers.max() < 1
    for column in numbers.unbind(1):
        assert chi_square((column * 100).long(), 100) < CHI_SQUARE_999[99]
    assert (torch.corrcoef(numbers.T) - torch.eye(3)).abs().max() < 4 / 20_000**0.5
    assert torch.equal(uniform(1, Use.COLOR, 2, torch.tensor([7, 3]), 3), numbers[[7, 3]])


def test_integers_and_flag_of_a_hash_are_its_fields():
    bits = (5 << 24 | 2**23) + (1 << 48)  # fields 2**23 and 5, flag set
    word = torch.tensor([bits])
    assert integer(word, 0, 10).item() == 5  # half of ten
    assert integer(word, 1, 2**24).item() == 5
    assert flag(word).item()
    assert not flag(word + (1 << 48)).item()


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = [epoch_order(seed, epoch, 1000) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert all((orders[0] == other).sum() < 10 for other in orders[1:])  # 1 expected by chance
    assert epoch_order(0, 0, 0).shape == (0,)


@pytest.mark.parametrize(
    ("seed", "epoch", "named"), [(-1, 0, "seed -1"), (2**63, 0, "seed 9223372036854775808"), (0, -2, "epoch -2")]
)
def test_negative_and_oversized_numbers_are_named(seed, epoch, named):
    with pytest.raises(ValueError, match=f"^{named} is outside .*: choose a non-negative"):
        epoch_order(seed, epoch, 3)
