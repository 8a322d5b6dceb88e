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
        self.groups = [dict(group) for group in optimizer.param_groups]
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
        has_other_state = self._has_other_state()
        if any(self.states.values()) and (has_other_state or len(by_device) > 1):
            warnings.warn(
                f"on_nonfinite=skip waits for the device at each step of {type(self.optimizer).__name__}, which keeps "
                "numbers on the host: construct it with fused=True or capturable=True",
                stacklevel=2,
            )
        if has_other_state and spoiled:
            self.optimizer.state.clear()
            self.optimizer.state.update(self.states)
            for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
                group.clear()
                group.update(kept)
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(torch.where(by_device[tensor.device], value, tensor))

    def _has_other_state(self) -> bool:
        """Whether there is what no copy in place takes back: new tensors, or numbers that have changed."""
        before = [_identities(entries) for entries in (*self.states.values(), *self.groups)]
        now = [_identities(entries) for entries in (*self.optimizer.state.values(), *self.optimizer.param_groups)]
        return before != now


def _identities(entries: dict[str, Any]) -> dict[str, Any]:
    """To be compared: which tensors and lists, whatever is in them, and the values of everything else."""
    return {name: id(value) if isinstance(value, (Tensor, list)) else value for name, value in entries.items()}
