"""Random numbers as pure functions of (seed, use, epoch, sample index), the same in every engine.

Sample i of an epoch gets the i-th number of the splitmix64 generator (Steele, Lea, Flood: "Fast splittable
pseudorandom number generators", 2014) whose state is derived from the seed, the use and the epoch. Arithmetic in int64
wraps in the same way on every device, so the numbers are the same everywhere.
"""

from enum import IntEnum

import torch
from torch import Tensor


class Use(IntEnum):
    """Purposes of random numbers; each has its own stream, so order, augmentation and splits are independent."""

    ORDER = 1
    AUGMENTATION = 2
    SPLIT = 3
    EXTRA_ORDER = 4
    CUTOUT = 5
    RESIZED_CROP = 6
    COLOR = 7
    AUTO_AUGMENT = 8
    MIXING = 9


# The constants of splitmix64 as signed 64-bit integers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
MULTIPLIER_2 = 0x94D049BB133111EB - 2**64

FIELD_BITS = 24  # as many as a float32 holds exactly; two fields of this size and a flag fit into the 64 bits of a hash
FIELD_MASK = 2**FIELD_BITS - 1


def integer(bits: Tensor, field: int, num_values: int) -> Tensor:
    """Returns a number in [0, num_values) per hash, uniform to within 2**-24; `field` 0 and 1 are independent."""
    return (((bits >> field * FIELD_BITS) & FIELD_MASK) * num_values) >> FIELD_BITS


def flag(bits: Tensor) -> Tensor:
    """Returns a bool per hash with probability 1/2, independent of the integers of the hash."""
    return ((bits >> 2 * FIELD_BITS) & 1).bool()


def uniform(seed: int, use: Use, epoch: int, indices: Tensor, count: int) -> Tensor:
    """Returns `count` numbers in [0, 1) per sample, float32 [B, count], for samples `indices` int64 [B]."""
    numbers = indices[:, None] * count + torch.arange(count, device=indices.device)
    return integer(hash_bits(seed, use, epoch, numbers), 0, 2**FIELD_BITS).float() / 2**FIELD_BITS


def epoch_order(seed: int, epoch: int, num_samples: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the order in which an epoch visits the samples, a permutation int64 [num_samples]."""
    return hash_order(seed, Use.ORDER, epoch, num_samples, device)


def hash_order(seed: int, use: Use, epoch: int, num_samples: int, device: torch.device | str = "cpu") -> Tensor:
    """Returns the permutation int64 [num_samples] that sorts the hashes; they never tie, so every device agrees."""
    return torch.argsort(hash_bits(seed, use, epoch, torch.arange(num_samples, device=device)))


def hash_bits(seed: int, use: Use, epoch: int, indices: Tensor) -> Tensor:
    """Returns 64 random bits per sample, int64 with the shape of `indices`; distinct indices have distinct bits.

    Raises ValueError if seed or epoch is negative or 2**63 or more.
    """
    for name, number in (("seed", seed), ("epoch", epoch)):
        if not 0 <= number < 2**63:
            raise ValueError(f"{name} {number} is outside 0..2**63 - 1: choose a non-negative {name}")
    # The state stays a CPU scalar: combined with `indices` on an accelerator it is a kernel argument, not a copy.
    state = torch.zeros((), dtype=torch.int64)
    for number in (seed, use, epoch):
        state = splitmix64(state ^ number, 0)
    return splitmix64(state, indices)


def splitmix64(state: Tensor, index: int | Tensor) -> Tensor:
    """Returns output `index` (from 0) of the generator with start `state`: 64 bits as int64, bijective in either."""
    bits = state + (index + 1) * GOLDEN
    bits = (bits ^ _logical_shift_right(bits, 30)) * MULTIPLIER_1
    bits = (bits ^ _logical_shift_right(bits, 27)) * MULTIPLIER_2
    return bits ^ _logical_shift_right(bits, 31)


def _logical_shift_right(bits: Tensor, count: int) -> Tensor:
    """Returns `bits >> count` with zeros shifted in; `>>` of a negative int64 shifts ones in."""
    return (bits >> count) & (2 ** (64 - count) - 1)
