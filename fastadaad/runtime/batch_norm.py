"""Batch-norm layers of a network, found by their attributes, so that third-party classes count too."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Returns the running means and variances that a forward pass of `network` would change."""
    norms = [module for module in network.modules() if module.training]
    found = (getattr(module, name, None) for module in norms for name in ("running_mean", "running_var"))
    return [statistics for statistics in found if statistics is not None]


def learns_statistics(network: nn.Module) -> bool:
    """Returns True if a forward pass would change running statistics of `network`."""
    return bool(running_statistics(network))


def depends_on_batch(network: nn.Module) -> bool:
    """Returns True if an image's logits, or running statistics, depend on the batch that the image is in."""
    without_statistics = any(
        isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
        for module in network.modules()
    )
    return without_statistics or learns_statistics(network)
