"""Batch-norm over the images of all ranks, so that several ranks compute the result of one rank with the whole batch.

torch's SyncBatchNorm runs on GPUs only; this one runs on every device that the ranks use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.overridden_forward import overridden_forward


class _SumOverRanks(torch.autograd.Function):
    """Sums a tensor over all ranks; the gradient on each rank is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, process_group: ProcessGroup) -> Tensor:
        context.process_group = process_group
        return process_group.all_reduce(tensor.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.process_group.all_reduce(gradient.clone()), None


def _synced_forward(norm: nn.BatchNorm2d, x: Tensor, process_group: ProcessGroup) -> Tensor:
    """Batch-norm of x [B, C, H, W]; in train mode with the statistics of all ranks."""
    if not norm.training:
        return nn.BatchNorm2d.forward(norm, x)
    axes = (0, 2, 3)
    pixels = x.float()
    count = pixels.new_full((1,), x.numel() / x.shape[1])
    # The mean first: sums of squares alone would lose the variance of a channel whose mean is large.
    sums = _SumOverRanks.apply(torch.cat([pixels.sum(axes), count]), process_group)
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centred = pixels - mean[:, None, None]
    variance = _SumOverRanks.apply(centred.square().sum(axes), process_group) / total
    _update_statistics(norm, mean, variance * total / (total - 1))
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    normalised = centred * scale[:, None, None]
    if norm.bias is not None:
        normalised = normalised + norm.bias[:, None, None]
    return normalised.to(x.dtype)


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, unbiased_variance: Tensor) -> None:
    """Updates the running statistics as nn.BatchNorm2d does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    momentum = 1.0 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, momentum)
    norm.running_var.lerp_(unbiased_variance, momentum)


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
    """Lets the batch-norm layers of `network` normalise over the images of all ranks inside the context."""

    def forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        return _synced_forward(norm, x, process_group)

    with overridden_forward([module for module in network.modules() if type(module) is nn.BatchNorm2d], forward):
        yield
