"""Optimiser whose step a CUDA graph can hold: it reads its learning rates from tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastadaad.runtime.cuda_graph import kept_values
from fastadaad.training.optimizers import LAMB, LARS

# Optimisers whose state does not begin as zeros; only their own first step knows its values.
NOT_FROM_ZERO = (torch.optim.ASGD, torch.optim.NAdam, torch.optim.Rprop)

# Optimisers with the option `capturable` that take a tensor as learning rate in their multi-tensor form alone.
ONLY_FOREACH = (torch.optim.Adadelta, torch.optim.RMSprop)

# Devices on which torch's optimisers accept `capturable`.
CAPTURABLE_DEVICES = ("cuda",)


class CapturableOptimizer:
    """Wrapper of an optimiser whose step() can be captured; learning rates stay numbers for users and schedules.

    Call refresh() before each call of a captured function, to pass on the learning rates. All state exists from the
    start, as zeros, so the first step gives the same result as without the wrapper. torch's option `capturable`,
    without which Adam and others refuse a capture, is on in the wrapper's steps alone. A capture freezes all other
    settings, such as momentum and weight decay.

    Raises:
        ValueError: The optimiser would read a learning rate on the host, or its new state would not be zeros.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            _check_takes_tensor_rate(optimizer, group)
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
        self._move_counts_to_device()
        # The steps before the capture run with `capturable` too, of which torch would warn.
        optimizer._warned_capturable_if_run_uncaptured = True

    @property
    def state(self) -> list[Tensor]:
        """All tensors that a step changes: the parameters, then the optimiser's state."""
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        return [*self._parameters(), *(value for value in kept if isinstance(value, Tensor))]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True if the optimiser leaves out an infinite update by itself, as GradScaler asks."""
        return getattr(self.optimizer, "_step_supports_amp_scaling", False)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser."""
        return self.optimizer.param_groups

    def refresh(self) -> None:
        """Copies each group's present learning rate to the tensor that the graph reads."""
        for rate, group in zip(self.learning_rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients."""
        self.optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Takes one step with the learning rates of the last refresh."""
        groups = self.optimizer.param_groups
        own: list[dict[str, Any]] = [
            {name: group[name] for name in ("lr", "capturable") if name in group} for group in groups
        ]
        # GradScaler leaves both here for a step, and removes them afterwards.
        scaling = {name: value for name, value in vars(self).items() if name in ("grad_scale", "found_inf")}
        try:
            vars(self.optimizer).update(scaling)
            for group, rate in zip(groups, self.learning_rates, strict=True):
                group["lr"] = rate
                if _can_be_capturable(group):
                    group["capturable"] = True
            self.optimizer.step()
        finally:
            for group, settings in zip(groups, own, strict=True):
                group.update(settings)
            for name in scaling:
                delattr(self.optimizer, name)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _create_state(self) -> None:
        """Lets the optimiser create its state in a step whose changes are reverted."""
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

    def _move_counts_to_device(self) -> None:
        """Moves the scalars of a state that was made without `capturable`, such as step counts, to the parameters."""
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.dim() == 0 and value.device != parameter.device:
                    state[name] = value.to(parameter.device)


def _can_be_capturable(group: dict[str, Any]) -> bool:
    return "capturable" in group and group["params"][0].device.type in CAPTURABLE_DEVICES


def _check_takes_tensor_rate(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Raises ValueError if the optimiser reads a learning rate that is a tensor on the host."""
    name = type(optimizer).__name__
    if isinstance(optimizer, (LARS, LAMB)) or group.get("fused"):
        return
    if isinstance(optimizer, ONLY_FOREACH) and group.get("foreach") is False:
        raise ValueError(
            f"{name} with foreach=False reads its learning rate on the host, which a graph cannot: construct it with "
            "foreach=True, or set mode=compiled"
        )
    if not _can_be_capturable(group):
        remedy = "construct it with fused=True, or set mode=compiled" if "fused" in group else "set mode=compiled"
        without = " without fused=True" if "fused" in group else ""
        raise ValueError(f"{name}{without} reads its learning rate on the host, which a graph cannot: {remedy}")
