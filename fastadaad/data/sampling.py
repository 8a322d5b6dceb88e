"""Order of the samples and their split into batches: pure functions of (seed, epoch), the same for every engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad.config import check_numbers
from fastadaad.data.hashing import Use, epoch_order, hash_order


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Split of an epoch over M samples into batches.

    With extra images the last `num_extra` samples are the extra ones. A fraction `extra_share` of each batch comes from
    them, and an epoch keeps the number of own images (Gowal et al. 2021, "Improving robustness using generated data").

    Attributes:
        batch_size: Samples of a batch on this rank.
        seed: Seed of the order, 0 <= seed < 2**63.
        shuffle: Visit the samples in a new random order per epoch; False: in ascending order.
        drop_last: Drop samples that do not fill a batch. If False, the last batch may be smaller and each sample comes
            once per epoch.
        num_extra: Number of extra samples at the end of the data set.
        extra_share: Fraction of each batch that comes from the extra samples.
        shard: Index of this shard: it takes samples shard, shard + num_shards, ... of the common order.
        num_shards: Number of shards. Ranks with batches of B / num_shards see the batches of one rank with B.

    Raises:
        ValueError: A number is not finite, or a count is not an integer.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    num_extra: int = 0
    extra_share: float = 0.0
    shard: int = 0
    num_shards: int = 1

    def __post_init__(self) -> None:
        check_numbers(self)

    def check(self, num_samples: int) -> None:
        """Raises ValueError if `num_samples` samples cannot be split as configured."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} is not positive: give at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard {self.shard} is outside 0..{self.num_shards - 1}")
        own = num_samples - self.num_extra
        if self.drop_last and self.batch_size * self.num_shards > own:
            ranks = f" on each of {self.num_shards} ranks" if self.num_shards > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size}{ranks} exceeds the {own} images and drop_last leaves no batch: "
                f"choose batch_size <= {own // self.num_shards}"
            )

    def num_images(self, num_samples: int) -> int:
        """Returns the images per epoch of this shard."""
        own = num_samples - self.num_extra
        if self.drop_last:
            return own // (self.batch_size * self.num_shards) * self.batch_size
        return len(range(self.shard, own, self.num_shards))

    def num_batches(self, num_samples: int) -> int:
        """Returns the batches per epoch of this shard."""
        return -(-self.num_images(num_samples) // self.batch_size)

    def batches(self, epoch: int, num_samples: int) -> tuple[Tensor, ...]:
        """Returns the sample indices of each batch of an epoch, int64 [B] on the CPU."""
        order = self._order(epoch, num_samples)[self.shard :: self.num_shards]
        return order.split(self.batch_size)[: self.num_batches(num_samples)]

    def _order(self, epoch: int, num_samples: int) -> Tensor:
        """Returns all samples of an epoch in visiting order, before the split into shards."""
        own = num_samples - self.num_extra
        order = epoch_order(self.seed, epoch, own) if self.shuffle else torch.arange(own)
        if not self.num_extra:
            return order
        # Whole batches of all ranks, their own samples first and then the extra ones.
        batch_size = self.batch_size * self.num_shards
        num_batches = own // batch_size
        extra_in_batch = round(self.extra_share * batch_size)
        extra = own + hash_order(self.seed, Use.EXTRA_ORDER, epoch, self.num_extra)
        extra = extra[torch.arange(num_batches * extra_in_batch) % self.num_extra]
        order = order[: num_batches * (batch_size - extra_in_batch)]
        return torch.cat([order.view(num_batches, -1), extra.view(num_batches, -1)], dim=1).flatten()
