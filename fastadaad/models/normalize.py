"""Normalisation as the first layer of every model, so that radii are in pixel units everywhere else."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ChannelValues = float | Sequence[float]


class Normalize(nn.Module):
    """(x - mean) / std per channel of x [B, num_channels, H, W].

    `mean` and `std` are one number for all channels or one per channel, in pixel units; they are saved with the weights.
    The default, 0 and 1, leaves pixels as they are.
    """

    def __init__(self, num_channels: int, mean: ChannelValues = 0.0, std: ChannelValues = 1.0):
        super().__init__()
        self.register_buffer("mean", _per_channel("mean", mean, num_channels))
        self.register_buffer("std", _per_channel("std", std, num_channels))
        if not (self.std > 0).all():
            raise ValueError(f"std {std} is not positive: give the standard deviation of the pixels")

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _per_channel(name: str, values: ChannelValues, num_channels: int) -> Tensor:
    """`values` as fp32 [num_channels, 1, 1]."""
    values = torch.as_tensor(values, dtype=torch.float32).flatten()
    if len(values) not in (1, num_channels):
        raise ValueError(f"{name} has {len(values)} values: give one, or one per channel ({num_channels})")
    return values.expand(num_channels).reshape(num_channels, 1, 1).clone()
