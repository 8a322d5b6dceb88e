"""An optimiser in the form that a captured graph can hold: its learning rates are read from tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastadaad.runtime.cuda_graph import kept_values
from fastadaad.training.optimizers import LAMB, LARS

# Their state begins with other numbers than zeros, which only their own first step knows.
NOT_FROM_ZERO = (torch.optim.ASGD, torch.optim.NAdam, torch.optim.Rprop)


class CapturableOptimizer:
    """`optimizer`, whose step() can be captured and whose learning rates stay numbers for the user and any schedule.

    Before each call of a captured function, refresh() takes the learning rates over. All state exists from the start,
    as zeros, which makes the first step what it would have been. Other settings (momentum, weight decay) are frozen by
    a capture. Raises ValueError for an optimiser that would read a learning rate on the host, or whose new state would
    not be zeros.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            if not _takes_tensor_rate(optimizer, group):
                raise ValueError(
                    f"{type(optimizer).__name__} without fused=True reads its learning rate on the host, which a graph "
                    "cannot: construct it with fused=True, or set mode=compiled"
                )
            if group.get("dampening"):
                raise ValueError("dampening is not 0, and the first step of a captured SGD would differ: set it to 0")
        self.learning_rates = [
            torch.tensor(float(group["lr"]), device=group["params"][0].device) for group in optimizer.param_groups
        ]
        if not optimizer.state:
            if isinstance(optimizer, NOT_FROM_ZERO):
                raise ValueError(
                    f"the state of {type(optimizer).__name__} does not begin as zeros, as that of a captured step "
                    "does: set mode=compiled"
                )
            self._create_state()

    @property
    def state(self) -> list[Tensor]:
        """All tensors that a step changes: parameters, then what the optimiser keeps of them."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self._parameters(), *(value for value in kept if isinstance(value, Tensor))]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's."""
        return self.optimizer.param_groups

    def refresh(self) -> None:
        """Copy each group's learning rate, as a schedule has left it, to where the graph reads it."""
        for rate, group in zip(self.learning_rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """One step with the learning rates of the last refresh."""
        groups = self.optimizer.param_groups
        numbers = [group["lr"] for group in groups]
        try:
            for group, rate in zip(groups, self.learning_rates, strict=True):
                group["lr"] = rate
            self.optimizer.step()
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _create_state(self) -> None:
        """Let the optimiser create its state in a step that counts for nothing."""
        parameters = [parameter for parameter in self._parameters() if parameter.requires_grad]
        gradients = [parameter.grad for parameter in parameters]
        with kept_values(parameters):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            self.step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for tensor in self.state[len(self._parameters()) :]:
            tensor.zero_()


def _takes_tensor_rate(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return bool(isinstance(optimizer, (LARS, LAMB)) or group.get("fused") or group.get("capturable"))
