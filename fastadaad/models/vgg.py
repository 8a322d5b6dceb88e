"""VGG with batch-norm for CIFAR: one linear layer behind the convolutions (Simonyan and Zisserman, 2015).

Submodules have the names of the common CIFAR programs (features.0, classifier), so that their weights fit.
"""

from torch import Tensor, nn

from fastadaad.models.normalize import ChannelValues, Normalize

# Depth -> convolutions of each of the five stages of 64, 128, 256, 512 and 512 channels, which end in a max-pool.
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """VGG of 11, 13, 16 or 19 layers; vgg16 has 14,728,266 parameters for CIFAR-10.

    Args:
        depth: Number of layers, a key of STAGES.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        mean: Subtracted from the pixels (see Normalize).
        std: Divides the pixels minus `mean`.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        mean: ChannelValues = 0.0,
        std: ChannelValues = 1.0,
    ):
        super().__init__()
        self.normalize = Normalize(in_channels, mean, std)
        layers: list[nn.Module] = []
        channels = in_channels
        for width, num_convolutions in zip((64, 128, 256, 512, 512), STAGES[depth], strict=True):
            for _ in range(num_convolutions):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, num_classes] of pixels [B, in_channels, H, W] in [0, 1]; H and W are 32 or more."""
        return self.classifier(self.features(self.normalize(x)).mean((2, 3)))
