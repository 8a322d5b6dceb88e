"""Averages of gradients, statistics and loss over all ranks after the backward pass, in one all-reduce."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastadaad.runtime.distributed import ProcessGroup


@torch.no_grad()
def average_over_ranks(process_group: ProcessGroup, num_images: int, loss: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Averages loss and tensors over the images of all ranks.

    Args:
        process_group: Ranks that train together.
        num_images: Number of images of this rank, over which its values are means.
        loss: Scalar.
        tensors: Tensors that are replaced by their averages, in place.

    Returns:
        The averaged loss.
    """
    one = torch.ones_like(loss)  # becomes the number of images of all ranks
    message = torch.cat([value.reshape(-1) for value in (loss, *tensors, one)]).mul_(num_images)
    process_group.all_reduce(message)
    means = (message[:-1] / message[-1]).split([1, *(tensor.numel() for tensor in tensors)])
    for tensor, mean in zip(tensors, means[1:], strict=True):
        tensor.copy_(mean.view(tensor.shape))
    return means[0].squeeze(0)


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Lists the running means and variances of the batch-norm layers in train mode."""
    norms = [module for module in network.modules() if module.training]
    found = (getattr(module, name, None) for module in norms for name in ("running_mean", "running_var"))
    return [statistics for statistics in found if statistics is not None]
