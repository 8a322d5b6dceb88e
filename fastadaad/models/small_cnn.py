"""The small CNN of the demonstrations: three convolutions, each with twice the channels of the one before."""

from torch import Tensor, nn

from fastadaad.models.normalize import ChannelValues, Normalize


class SmallCNN(nn.Module):
    """Three 3x3 convolutions of channels, 2*channels, 4*channels with batch-norm and ReLU, global mean, linear layer.

    With one input channel and ten classes: channels=16 has 24,058 parameters, channels=72 has 471,106.

    Args:
        channels: Channels of the first convolution.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        strides: Strides of the three convolutions.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.

    Raises:
        ValueError: `channels` is below 1.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        strides: tuple[int, int, int] = (2, 2, 1),
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels {channels} is not positive: give at least 1")
        widths = (in_channels, channels, 2 * channels, 4 * channels)
        self.normalize = Normalize(in_channels, mean, std)
        self.features = nn.Sequential(*map(_conv_bn_relu, widths[:-1], widths[1:], strides))
        self.fc = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        return self.fc(self.features(self.normalize(x)).mean((2, 3)))


def _conv_bn_relu(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
