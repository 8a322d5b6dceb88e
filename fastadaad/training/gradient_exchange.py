"""Averages of gradients, statistics and loss over all ranks after the backward pass, in one all-reduce."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
