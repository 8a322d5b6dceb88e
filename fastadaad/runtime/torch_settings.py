"""Settings of torch for a whole process: algorithms, threads, and the random generators of Python, numpy and torch."""

import logging
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import numpy as np
import torch

log = logging.getLogger(__name__)

# An operation on a batch of such images takes microseconds. Its threads then wait for each other longer than they
# compute, above all beside other programs: 11 images/s of the demo with two threads on two busy cores, 85 with one.
SMALL_PIXELS = 16 * 16
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Makes torch use only deterministic algorithms inside the context, if `enabled`.

    torch raises RuntimeError for an operation without a deterministic algorithm.
    """
    if not enabled:
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    try:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def measured_algorithms() -> Iterator[None]:
    """Lets cuDNN measure its algorithms for each new shape and keep the fastest, inside the context.

    The batches of a training have one shape, so the measurement pays. Deterministic algorithms stay as they are.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
    try:
        yield
    finally:
        cudnn.benchmark = before


def needs_one_thread(height: int, width: int, device: torch.device, environment: Mapping[str, str]) -> bool:
    """Returns True for images of up to 16x16 pixels on a CPU, unless the user's environment gives a number of threads.

    Args:
        height: Rows of an image.
        width: Columns of an image.
        device: Device of the networks.
        environment: Variables of the environment.
    """
    is_given = any(environment.get(name) for name in VARIABLES)
    return device.type == "cpu" and height * width <= SMALL_PIXELS and not is_given


@contextmanager
def fitting_threads(height: int, width: int, device: torch.device) -> Iterator[None]:
    """Uses one thread inside the context if needs_one_thread says so, and says it once; else leaves torch's number.

    Args:
        height: Rows of an image.
        width: Columns of an image.
        device: Device of the networks.
    """
    before = torch.get_num_threads()
    if before == 1 or not needs_one_thread(height, width, device, os.environ):
        yield
        return
    _say_once(f"images of {height}x{width} pixels: one thread is faster; OMP_NUM_THREADS={before} uses {before}")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _say_once(line: str) -> None:
    log.info(line)


def random_states() -> dict[str, Any]:
    """Returns the states of all global generators, also of torch's on each CUDA device.

    They are numbers, strings, lists and tensors.
    """
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    version, internal, next_gauss = random.getstate()
    return {
        "python": [version, list(internal), next_gauss],
        "numpy": [name, keys.tolist(), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Restores the result of random_states, also after JSON. States of missing CUDA devices are ignored."""
    version, internal, next_gauss = states["python"]
    random.setstate((version, tuple(internal), next_gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state, device)


@contextmanager
def own_random_states(seed: int) -> Iterator[None]:
    """Seeds all global generators with `seed` inside the context, and restores their states afterwards."""
    before = random_states()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)  # of all devices
        yield
    finally:
        restore_random_states(before)
