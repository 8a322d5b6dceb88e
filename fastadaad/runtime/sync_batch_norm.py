"""Batch-norm over the images of all processes, so that several compute what one with the whole batch does.

torch's own SyncBatchNorm runs on GPUs only; this one runs wherever the processes do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.runtime.distributed import ProcessGroup


class _SumOverRanks(torch.autograd.Function):
    """Sums a tensor over all processes; each one's gradient is the sum of the gradients of all."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        context.process_group = process_group
        return process_group.all_reduce(tensor.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.process_group.all_reduce(gradient.clone()), None


class _SyncedBatchNorm2d(nn.BatchNorm2d):
    """A batch-norm layer in train mode; x [B, C, H, W] -> the same shape."""

    process_group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = (0, 2, 3)
        pixels = x.float()
        count = pixels.new_full((1,), x.numel() / x.shape[1])
        # The mean first: sums of squares alone would lose the variance of a channel whose mean is large.
        sums = _SumOverRanks.apply(torch.cat([pixels.sum(axes), count]), self.process_group)
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centred = pixels - mean[:, None, None]
        variance = _SumOverRanks.apply(centred.square().sum(axes), self.process_group) / total
        self._update(mean, variance * total / (total - 1))
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        normalised = centred * scale[:, None, None]
        if self.bias is not None:
            normalised = normalised + self.bias[:, None, None]
        return normalised.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """The running statistics, as nn.BatchNorm2d does it."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased_variance, share)


def check_sync(network: nn.Module) -> None:
    """Raises ValueError for a network with another kind of batch-norm layer than nn.BatchNorm2d."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and type(module) is not nn.BatchNorm2d:
            raise ValueError(
                f"batch_norm=sync knows nn.BatchNorm2d, and the student has {type(module).__name__}: set "
                "batch_norm=local"
            )


@contextmanager
def synced_batch_norm(network: nn.Module, process_group: ProcessGroup) -> Iterator[None]:
    """The batch-norm layers of `network` take the images of all processes inside."""
    # By their class, as in mixed_precision.py: the network has no trace of it afterwards.
    norms = [module for module in network.modules() if type(module) is nn.BatchNorm2d]
    for norm in norms:
        norm.__class__ = _SyncedBatchNorm2d
        norm.__dict__["process_group"] = process_group
    try:
        yield
    finally:
        for norm in norms:
            norm.__class__ = nn.BatchNorm2d
            del norm.__dict__["process_group"]
