"""What several processes tell each other after the backward pass of a step, in one message."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastadaad.runtime.distributed import ProcessGroup


@torch.no_grad()
def average_over_ranks(process_group: ProcessGroup, num_images: int, loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Make of `loss`, a scalar, and of `tensors`, in place, their means over the images of all processes.

    Each process brings means over its own `num_images`. Returns the loss.
    """
    one = torch.ones_like(loss)  # which becomes the number of all images
    message = torch.cat([value.reshape(-1) for value in (loss, *tensors, one)]).mul_(num_images)
    process_group.all_reduce(message)
    means = (message[:-1] / message[-1]).split([1, *(tensor.numel() for tensor in tensors)])
    for tensor, mean in zip(tensors, means[1:], strict=True):
        tensor.copy_(mean.view(tensor.shape))
    return means[0].squeeze(0)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Means and variances that the batch-norm layers of `network` keep and now change."""
    norms = [module for module in network.modules() if module.training]
    found = (getattr(module, name, None) for module in norms for name in ("running_mean", "running_var"))
    return [statistics for statistics in found if statistics is not None]
