"""Number of threads of torch's operations on the CPU."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import torch

log = logging.getLogger(__name__)

# An operation on a batch of such images takes microseconds. Its threads then wait for each other longer than they
# compute, above all beside other programs: 11 images/s of the demo with two threads on two busy cores, 85 with one.
SMALL_PIXELS = 16 * 16
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


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
