"""Batch-norm folded into the convolution before it, for attacks that ask a frozen network thousands of times."""

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

# How far folded logits may be from the network's own, in units of their largest: rounding, not another function.
TOLERANCE = 1e-4


def folded(model: nn.Module, x: Tensor) -> tuple[nn.Module, str | None]:
    """A copy of `model` in eval mode with its batch-norm folded, and None; or `model` itself and why it is not.

    Tried out on x [B, C, H, W]: a network that torch.fx traces wrongly is not folded.
    """
    try:
        copy = fuse(model.eval())
        with torch.no_grad():
            logits, expected = copy(x), model(x)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        return model, f"batch-norm was not folded: {' '.join(str(error).split())[:200]}"
    if not torch.allclose(logits, expected, rtol=0, atol=TOLERANCE * expected.abs().max().item()):
        return model, "batch-norm was not folded: the folded network has other outputs"
    return copy, None
