"""WideResNet with Swish as RobustBench's strongest CIFAR teachers have it (Gowal et al., arXiv 2010.03593).

Submodules have the names of RobustBench's DMWideResNet (init_conv, layer.0.block.0.batchnorm_0, logits), so that its
weights fit. The convolution of stride 2 pads only to the right and below, as TensorFlow's `SAME` does.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from fastadaad.models.normalize import ChannelValues, Normalize


class SwishWideResNet(nn.Module):
    """Stem of 16 channels and three stages of (depth - 4) / 6 blocks with 16, 32 and 64 times `width` channels.

    Args:
        depth: Number of layers, 6n + 4 with n >= 1.
        width: Factor of the channels.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        mean: Subtracted from the pixels (see Normalize); RobustBench's files have it in its program.
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
        self.init_conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.layer = nn.Sequential(
            *(Stage(num_blocks, *widths[i : i + 2], stride=stride) for i, stride in enumerate((1, 2, 2)))
        )
        self.batchnorm = nn.BatchNorm2d(widths[-1])
        self.logits = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]."""
        out = self.layer(self.init_conv(self.normalize(x)))
        return self.logits(F.silu(self.batchnorm(out)).mean((2, 3)))


class Stage(nn.Module):
    """Blocks, the first of which changes channels and stride."""

    def __init__(self, num_blocks: int, in_channels: int, out_channels: int, *, stride: int):
        super().__init__()
        first = Block(in_channels, out_channels, stride)
        self.block = nn.Sequential(first, *(Block(out_channels, out_channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        return self.block(x)


class Block(nn.Module):
    """Two pre-activated 3x3 convolutions; a 1x1 convolution of the activated input if the channels change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.padding = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns feature maps [B, out_channels, H / stride, W / stride]."""
        activated = F.silu(self.batchnorm_0(x))
        out = self.conv_0(F.pad(activated, self.padding))
        out = self.conv_1(F.silu(self.batchnorm_1(out)))
        return out + (self.shortcut(activated) if self.has_shortcut else x)
