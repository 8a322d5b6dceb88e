"""Two teachers as one: the mixture of their probabilities."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MixedTeacher(nn.Module):
    """Logits t log((1 - w) softmax(T1 / t) + w softmax(T2 / t)), whose softmax at temperature t is the mixture.

    The sum of two kl's to fixed teachers, (1 - w) kl_t(S, T1) + w kl_t(S, T2), is kl_t(S, mixture) plus a number that
    does not depend on the student: both have the same gradient.

    Args:
        first: First teacher, from pixels to logits [B, N].
        second: Second teacher with the same classes.
        weight: w, the weight of the second teacher, in (0, 1).
        temperature: t, the temperature of the loss.
    """

    def __init__(self, first: nn.Module, second: nn.Module, *, weight: float, temperature: float = 1.0):
        super().__init__()
        if not 0 < weight < 1:
            raise ValueError(f"weight of the second teacher is {weight}: it must lie between 0 and 1, such as 0.333")
        self.first, self.second, self.temperature = first, second, temperature
        self.log_weights = (math.log1p(-weight), math.log(weight))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits [B, N], fp32, of pixels [B, C, H, W] in [0, 1]."""
        first = F.log_softmax(self.first(x).float() / self.temperature, dim=1) + self.log_weights[0]
        second = F.log_softmax(self.second(x).float() / self.temperature, dim=1) + self.log_weights[1]
        return self.temperature * torch.logaddexp(first, second)
