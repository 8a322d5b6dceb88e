"""An update that is taken back where it was spoiled, which the device decides."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer


class BeforeUpdate:
    """All that a training step changes, as it is when this is made: a copy of the student and the optimiser's state.

    `sums`: further tensors that the step writes to.
    """

    def __init__(self, student: nn.Module, optimizer: Optimizer, sums: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        self.groups = [_settings(group) for group in optimizer.param_groups]
        self.tensors = [
            *(parameter for group in optimizer.param_groups for parameter in group["params"]),
            *(value for state in self.states.values() for value in state.values() if isinstance(value, Tensor)),
            *student.buffers(),
            *sums,
        ]
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def restore(self, spoiled: Tensor) -> None:
        """Everything bit for bit as it was where `spoiled`, a bool scalar on the device; else nothing changes.

        Waits for the device where the optimiser has made state, as in its first update, or keeps some on the host.
        """
        by_device = {device: spoiled.to(device) for device in {tensor.device for tensor in self.tensors}}
        if self._has_other_state() and spoiled:
            self.optimizer.state.clear()
            self.optimizer.state.update(self.states)
            for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
                group.update(settings)
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(torch.where(by_device[tensor.device], value, tensor))
        if self.states and len(by_device) > 1:
            self._say_waiting()

    def _has_other_state(self) -> bool:
        """Whether there is state that no copy in place takes back: new tensors, or numbers that have changed."""
        before = list(map(_identities, (*self.states.values(), *self.groups)))
        groups = map(_settings, self.optimizer.param_groups)
        has_other = before != list(map(_identities, (*self.optimizer.state.values(), *groups)))
        if has_other and self.states:
            self._say_waiting()
        return has_other

    def _say_waiting(self) -> None:
        warnings.warn(
            f"on_nonfinite=skip waits for the device at each step of {type(self.optimizer).__name__}, which keeps "
            "numbers on the host: fused=True or capturable=True keeps them on the device",
            stacklevel=4,
        )


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _identities(state: dict[str, Any]) -> dict[str, Any]:
    """To be compared: which tensors, whatever is in them, and the values of everything else."""
    return {name: id(value) if isinstance(value, Tensor) else value for name, value in state.items()}
