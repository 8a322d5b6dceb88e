"""Running averages of the student's weights: EMA and SWA, without waiting for the device.

torch's AveragedModel reads its counter from a tensor, which on CUDA makes the host wait twice in every step.
"""

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

MODULE, COUNT = "module.", "n_averaged"  # names in a state_dict of torch's AveragedModel


class AveragedWeights:
    """Average of a network's parameters and buffers; integer buffers are copied.

    Args:
        network: Network to average.
        ema_decay: Weight of the average in each update of an exponential moving average; None: all states that were
            added count equally, as in SWA.
    """

    def __init__(self, network: nn.Module, ema_decay: float | None = None) -> None:
        self.module, self.ema_decay = copy.deepcopy(network), ema_decay
        self.num_averaged = 0

    def add(self, network: nn.Module) -> None:
        """Adds the network's present state to the average. No host synchronisation."""
        self.accumulate(network)
        self.num_averaged += 1

    @torch.no_grad()
    def accumulate(self, network: nn.Module) -> None:
        """Does the part of add() that happens on the device, which a CUDA graph may hold if ema_decay is given.

        The first state is copied, so a graph freezes whether num_averaged is 0.
        """
        pairs = list(zip(_tensors(self.module), _tensors(network), strict=True))
        averaged = [pair for pair in pairs if self.num_averaged and pair[0].is_floating_point()]
        copied = [pair for pair in pairs if not (self.num_averaged and pair[0].is_floating_point())]
        if copied:
            torch._foreach_copy_([own for own, _ in copied], [given for _, given in copied])
        if averaged:
            self._average([own for own, _ in averaged], [given for _, given in averaged])

    def _average(self, own: list[Tensor], given: list[Tensor]) -> None:
        if self.ema_decay is not None:
            torch._foreach_lerp_(own, given, 1 - self.ema_decay)
        else:
            torch._foreach_add_(own, torch._foreach_div(torch._foreach_sub(given, own), self.num_averaged + 1))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state with the names of torch's AveragedModel."""
        state = {f"{MODULE}{name}": tensor for name, tensor in self.module.state_dict().items()}
        return {COUNT: torch.tensor(self.num_averaged), **state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state_dict(), or one of torch's AveragedModel."""
        self.module.load_state_dict({name.removeprefix(MODULE): state[name] for name in state if name != COUNT})
        self.num_averaged = int(state[COUNT])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that an update changes."""
        return list(_tensors(self.module))


def _tensors(network: nn.Module) -> chain[Tensor]:
    return chain(network.parameters(), network.buffers())
