"""WideResNet-depth-width with pre-activation blocks and without dropout (Zagoruyko and Komodakis, 2016).

Submodules have the names of RobustBench's WideResNet (block1.layer.0.convShortcut, bn1, fc), so that its weights fit.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastadaad.models.normalize import ChannelValues, Normalize


class WideResNet(nn.Module):
    """Stem of 16 channels and three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels.

    WRN-16-4 has 2,748,890 parameters for CIFAR-10.

    Args:
        depth: Number of layers, 6n + 4 with n >= 1.
        width: Factor of the channels.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.

    Raises:
        ValueError: `depth` is not 6n + 4, or `width` is below 1.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if num_blocks < 1 or rest:
            raise ValueError(f"depth {depth} is not 6n + 4 with n >= 1: choose 10, 16, 22, 28, 34, ...")
        if width < 1:
            raise ValueError(f"width {width} is not positive: give at least 1")
        self.normalize = Normalize(in_channels, mean, std)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(num_blocks, 16, 16 * width, stride=1)
        self.block2 = Stage(num_blocks, 16 * width, 32 * width, stride=2)
        self.block3 = Stage(num_blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        out = self.conv1(self.normalize(x))
        out = self.block3(self.block2(self.block1(out)))
        return self.fc(F.relu(self.bn1(out)).mean((2, 3)))


class Stage(nn.Module):
    """`num_blocks` blocks; the first one changes channels and resolution."""

    def __init__(self, num_blocks: int, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        rest = [PreActivationBlock(out_channels, out_channels, stride=1) for _ in range(num_blocks - 1)]
        self.layer = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        return self.layer(x)


class PreActivationBlock(nn.Module):
    """conv(relu(bn(conv(relu(bn(x)))))) + x; if channels change, a 1x1 convolution of relu(bn(x)) replaces x."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels
        self.convShortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        out = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return out + (x if self.convShortcut is None else self.convShortcut(activated))


def _initialize(module: nn.Module) -> None:
    """Initialises convolutions by He's fan-out rule and the classifier's bias with 0, as the original does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
