"""Random images and networks in the shapes of a recipe, for steps that only measure time and memory."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastadaad.models import load_model
from fastadaad.run_config import RunConfig

# The smallest rate: random networks must not diverge into infinities, which would be slow.
LEARNING_RATE = 1e-9


@dataclass(frozen=True, kw_only=True)
class ImageKind:
    """Shape and number of a data set's training images."""

    channels: int
    size: int
    num_classes: int
    num_images: int

    @property
    def num_bytes(self) -> int:
        """Bytes of all images as uint8."""
        return self.num_images * self.channels * self.size**2

    def batch(self, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns random images [B, C, H, W] in [0, 1] and labels [B], which come in turn."""
        x_natural = torch.rand(batch_size, self.channels, self.size, self.size, device=device)
        return x_natural, torch.arange(batch_size, device=device) % self.num_classes


# Data sets whose sizes are known without reading them.
IMAGES = {
    "digits": ImageKind(channels=1, size=8, num_classes=10, num_images=1437),
    "fashion-mnist": ImageKind(channels=1, size=28, num_classes=10, num_images=60_000),
    "cifar10": ImageKind(channels=3, size=32, num_classes=10, num_images=50_000),
    "cifar100": ImageKind(channels=3, size=32, num_classes=100, num_images=50_000),
    "tiny-imagenet": ImageKind(channels=3, size=64, num_classes=200, num_images=100_000),
}


def images_of(config: RunConfig) -> ImageKind:
    """Returns the kind of the recipe's images. Raises ValueError for a data set whose image size is not known here."""
    if config.data.name not in IMAGES:
        raise ValueError(
            f"data set {config.data.name!r} is not one of {', '.join(IMAGES)}: its image size is not known"
        )
    return IMAGES[config.data.name]


def random_networks(config: RunConfig, device: torch.device) -> tuple[nn.Module, nn.Module | None]:
    """Returns the recipe's student and teacher with random weights; None for a method without a teacher."""
    kind = images_of(config)

    def network(name: str) -> nn.Module:
        return load_model(name, num_classes=kind.num_classes, in_channels=kind.channels).to(device)

    student = network(config.student.name)
    needs_teacher = config.method_row.needs_teacher
    return student, network(config.teacher.name).eval() if needs_teacher and config.teacher is not None else None
