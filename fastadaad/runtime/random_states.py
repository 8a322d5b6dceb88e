"""The generators that Python, numpy and torch share among all who draw: seeded for a run, saved, and given back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of all of them, torch's of each CUDA device too; numbers, texts, lists and tensors."""
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state())
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """The inverse of random_states, also through JSON. CUDA devices that there are not are left out."""
    version, internal, next_gauss = states["python"]
    random.setstate((version, tuple(internal), next_gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def own_random_states(seed: int) -> Iterator[None]:
    """All of them are seeded with `seed` inside, and are as they were afterwards."""
    before = random_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # of all devices
        yield
    finally:
        restore_random_states(before)
