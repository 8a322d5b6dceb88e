"""Random numbers: a CUDA generator's seed and offset choose the numbers, as Philox does, drawn on the CPU."""

from collections.abc import Callable
from typing import Any

import torch

DRAWN = 4  # a draw advances the offset by this much; Philox's offsets are multiples of 4


def generator_of(given: torch.Generator | None, device: torch.device) -> torch.Generator:
    """Returns the CUDA generator of a draw: the given one, or the default of the device."""
    if given is not None:
        return given
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


def draw(generator: torch.Generator, run: Callable[[torch.Generator], Any]) -> Any:
    """Runs a draw with a CPU generator that the CUDA generator determines, and advances that one.

    Operations without an argument for a generator draw from torch's default generator of the CPU, which has the same
    state meanwhile.
    """
    offset = generator.get_offset()
    generator.set_offset(offset + DRAWN)
    return draw_at(generator.initial_seed(), offset, run)


def draw_at(seed: int, offset: int, run: Callable[[torch.Generator], Any]) -> Any:
    """Runs a draw with the numbers of a seed and an offset."""
    chosen = torch.Generator().manual_seed((seed * 1_000_003 + offset) % 2**63)
    default = torch.default_generator
    state = default.get_state()
    default.set_state(chosen.get_state())
    try:
        return run(chosen)
    finally:
        default.set_state(state)
