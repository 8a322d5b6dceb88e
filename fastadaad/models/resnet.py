"""The CIFAR variants of ResNet: 3x3 stem of stride 1, no max-pool (He et al., 2016).

Submodules have the names of the common CIFAR programs (conv1, layer1.0.shortcut.0, linear), so that their weights fit.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from fastadaad.models.normalize import ChannelValues, Normalize

# Blocks in each of the four stages.
RESNET18 = (2, 2, 2, 2)
RESNET34 = (3, 4, 6, 3)
WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """Stem of 64 channels and four stages of basic blocks, 64 to 512 channels.

    ResNet-18 has 11,173,962 parameters for CIFAR-10, ResNet-34 21,282,122.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        num_blocks: Blocks per stage.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        num_blocks: Sequence[int] = RESNET18,
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(BasicBlock, num_blocks)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        out = F.relu(self.bn1(self.conv1(self.normalize(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        return self.linear(out.mean((2, 3)))


class PreActResNet(nn.Module):
    """ResNet with pre-activation blocks and batch-norm before the classifier (He et al., "Identity mappings", 2016).

    PreActResNet-18 has 11,172,170 parameters for CIFAR-10.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        num_blocks: Blocks per stage.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        num_blocks: Sequence[int] = RESNET18,
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(PreActBlock, num_blocks)
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        out = self.conv1(self.normalize(x))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            out = stage(out)
        return self.linear(F.relu(self.bn(out)).mean((2, 3)))


def stages(block: Callable[[int, int, int], nn.Module], num_blocks: Sequence[int]) -> list[nn.Sequential]:
    """Returns four stages of blocks; the first block of stages 2, 3 and 4 halves the resolution."""
    result, in_channels = [], WIDTHS[0]
    for out_channels, num, first_stride in zip(WIDTHS, num_blocks, (1, 2, 2, 2), strict=True):
        strides = (first_stride, *[1] * (num - 1))
        inputs = (in_channels, *[out_channels] * (num - 1))
        result.append(nn.Sequential(*[block(i, out_channels, s) for i, s in zip(inputs, strides, strict=True)]))
        in_channels = out_channels
    return result


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is a 1x1 convolution if the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + x with a = relu(bn(x)); if the shape changes, a 1x1 convolution of a replaces x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))
