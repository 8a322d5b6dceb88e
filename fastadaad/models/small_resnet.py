"""The small residual network of the CPU-scale comparisons: the widths of SmallCNN, with shortcuts."""

from torch import Tensor, nn
from torch.nn import functional as F

from fastadaad.models.normalize import ChannelValues, Normalize
from fastadaad.models.resnet import BasicBlock


class SmallResNet(nn.Module):
    """A 3x3 stem of stride 2 and two basic blocks, to 2*channels at stride 2 and to 4*channels; global mean, linear.

    With one input channel and ten classes, channels=8 has 18,626 parameters.

    Args:
        channels: Channels of the stem.
        num_classes: Number of logits.
        in_channels: Channels of an image.
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
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels {channels} is not positive: give at least 1")
        self.normalize = Normalize(in_channels, mean, std)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.block1 = BasicBlock(channels, 2 * channels, stride=2)
        self.block2 = BasicBlock(2 * channels, 4 * channels, stride=1)
        self.fc = nn.Linear(4 * channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        return self.fc(self.block2(self.block1(out)).mean((2, 3)))
