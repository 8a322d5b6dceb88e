"""Normalisation as the first layer of every model, so that radii are in pixel units elsewhere."""

from collections.abc import Sequence

import torch
import torch.fx
from torch import Tensor, nn

ChannelValues = float | Sequence[float]


class Normalize(nn.Module):
    """Computes (x - mean) / std per channel of x [B, num_channels, H, W]; the defaults leave pixels unchanged.

    Args:
        num_channels: Channels of an image.
        mean: One number for all channels or one per channel, in pixel units; saved with the weights.
        std: As mean; above 0.

    Raises:
        ValueError: A number of values other than 1 or num_channels, or a standard deviation that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int, mean: ChannelValues = 0.0, std: ChannelValues = 1.0):
        super().__init__()
        means, stds = _per_channel("mean", mean, num_channels), _per_channel("std", std, num_channels)
        if min(stds) <= 0:
            raise ValueError(f"std {std} is not positive: give the standard deviation of the pixels")
        self.register_buffer("mean", torch.tensor(means).reshape(num_channels, 1, 1))
        self.register_buffer("std", torch.tensor(stds).reshape(num_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns normalised pixels of the shape of `x`.

        Raises:
            ValueError: `x` has another number of channels, over which the statistics would be broadcast.
        """
        # A trace of torch.fx knows no shapes; its network has run on images before.
        if not isinstance(x, torch.fx.Proxy) and x.shape[-3] != len(self.mean):
            raise ValueError(
                f"images have {x.shape[-3]} channels and the network takes {len(self.mean)}: make the network with "
                f"in_channels={x.shape[-3]}, or give images of {len(self.mean)} channels"
            )
        return (x - self.mean) / self.std


def _per_channel(name: str, values: ChannelValues, num_channels: int) -> list[float]:
    per_channel = [float(value) for value in values] if isinstance(values, Sequence) else num_channels * [float(values)]
    if len(per_channel) != num_channels:
        raise ValueError(f"{name} has {len(per_channel)} values: give one number, or one per channel ({num_channels})")
    return per_channel
