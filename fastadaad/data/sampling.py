"""Which samples make up which batch: pure functions of (seed, epoch), the same for every engine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad.data.hashing import Use, epoch_order, hash_order


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an epoch over M samples is cut into batches.

    With `num_extra` the last so many samples are extra ones: `extra_share` of each batch comes from them, and an epoch
    is still as many images as there are others (the sampling of Gowal et al. 2021, "Improving robustness using
    generated data").
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    """Leave out what does not fill a batch; else the last batch may be smaller, and every sample comes once."""
    num_extra: int = 0
    extra_share: float = 0.0
    shard: int = 0
    num_shards: int = 1
    """This process takes every num_shards-th sample of the common order, from the shard-th on.

    So num_shards processes with batches of B / num_shards see what one with batches of B sees.
    """

    def check(self, num_samples: int) -> None:
        """Raises ValueError where `num_samples` do not give a batch as asked."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size {self.batch_size} is not positive: give at least 1")
        if not 0 <= self.shard < self.num_shards:
            raise ValueError(f"shard {self.shard} is outside 0..{self.num_shards - 1}")
        own = num_samples - self.num_extra
        if self.drop_last and self.batch_size * self.num_shards > own:
            process_group = f" in each of {self.num_shards} processes" if self.num_shards > 1 else ""
            raise ValueError(
                f"batch_size {self.batch_size}{processes} exceeds the {own} images and drop_last leaves no batch: "
                f"choose batch_size <= {own // self.num_shards}"
            )

    def num_images(self, num_samples: int) -> int:
        """Of an epoch, in this process."""
        own = num_samples - self.num_extra
        if self.drop_last:
            return own // (self.batch_size * self.num_shards) * self.batch_size
        return len(range(self.shard, own, self.num_shards))

    def num_batches(self, num_samples: int) -> int:
        """Of an epoch, in this process."""
        return -(-self.num_images(num_samples) // self.batch_size)

    def batches(self, epoch: int, num_samples: int) -> tuple[Tensor, ...]:
        """The samples of each batch of an epoch, int64 [B] each, on the CPU."""
        order = self._order(epoch, num_samples)[self.shard :: self.num_shards]
        return order.split(self.batch_size)[: self.num_batches(num_samples)]

    def _order(self, epoch: int, num_samples: int) -> Tensor:
        """All samples of an epoch in the order of their visit, before they are dealt to the shards."""
        own = num_samples - self.num_extra
        order = epoch_order(self.seed, epoch, own) if self.shuffle else torch.arange(own)
        if not self.num_extra:
            return order
        # Whole batches of all processes, their own samples first and then the extra ones.
        batch_size = self.batch_size * self.num_shards
        num_batches = own // batch_size
        extra_in_batch = round(self.extra_share * batch_size)
        extra = own + hash_order(self.seed, Use.EXTRA_ORDER, epoch, self.num_extra)
        extra = extra[torch.arange(num_batches * extra_in_batch) % self.num_extra]
        order = order[: num_batches * (batch_size - extra_in_batch)]
        return torch.cat([order.view(num_batches, -1), extra.view(num_batches, -1)], dim=1).flatten()
