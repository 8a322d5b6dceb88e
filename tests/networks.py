"""Networks and batches small enough that a test of a whole training step takes milliseconds."""

import torch
from torch import Tensor, nn

NUM_CLASSES = 5


class Branching(nn.Module):
    """Network that torch.fx cannot trace: its control flow depends on the pixels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x if x.mean() > -1 else -x)


def tiny_network(seed: int, channels: int = 6) -> nn.Sequential:
    """Makes two convolutions with batch-norm, whose running statistics differ from a new layer's; in train mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * channels, NUM_CLASSES),
        )
        with torch.no_grad():
            network(torch.rand(64, 3, 8, 8) ** 2)
            network[-1].weight.mul_(6)  # so that the logits of the classes differ clearly
    return network


def smooth(network: nn.Sequential) -> nn.Sequential:
    """Returns a network with SiLU for ReLU.

    At a kink of ReLU rounding changes a gradient, and with it the signs of many pixels: how processors round then
    decides the outcome of a search.
    """
    return nn.Sequential(*(nn.SiLU() if isinstance(layer, nn.ReLU) else layer for layer in network))


def student_and_teacher() -> tuple[nn.Module, nn.Module]:
    return tiny_network(1), tiny_network(2, channels=8)


def trained_network(x_natural: Tensor, labels: Tensor) -> nn.Module:
    """Returns a network that classifies most of the images correctly, so that an attack can break them."""
    network = tiny_network(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x_natural), labels).backward()
        optimizer.step()
    return network


def images_and_labels(batch_size: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws x_natural [B, 3, 8, 8] with some pixels on the borders 0 and 1, and labels [B]."""
    generator = torch.Generator().manual_seed(seed)
    x_natural = (1.2 * torch.rand(batch_size, 3, 8, 8, generator=generator) - 0.1).clamp(0, 1)
    return x_natural, torch.randint(0, NUM_CLASSES, (batch_size,), generator=generator)
