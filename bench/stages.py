"""Milliseconds of a training step's parts: start, inner loop, outer loss with backward, optimiser."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from fastadaad.inner.maximizer import start_point

from . import reference
from .networks import Program

STAGES = ("start_ms", "inner_ms", "outer_ms", "optimizer_ms")


class Clock:
    """Milliseconds that calls have taken, by name; on CUDA it waits for the device before and after a call."""

    def __init__(self, device: torch.device) -> None:
        self.milliseconds: dict[str, float] = {}
        self._device = device

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return 1e3 * time.perf_counter()

    def timed(self, name: str, function: Callable) -> Callable:
        """`function`, whose time is added to that of `name`."""

        def call(*arguments, **keywords):
            begin = self.now()
            result = function(*arguments, **keywords)
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + self.now() - begin
            return result

        return call


@contextmanager
def timed_parts(program: Program, clock: Clock) -> Iterator[None]:
    """Inside, the program's inner loop and its optimiser's steps are timed as `search` and `optimizer`."""
    owner, name = (
        (reference, "reference_inner_loop") if program.variant.is_reference else (program.distiller.maximizer, "search")
    )
    with (
        mock.patch.object(owner, name, clock.timed("search", getattr(owner, name))),
        mock.patch.object(program.optimizer, "step", clock.timed("optimizer", program.optimizer.step)),
    ):
        yield


def _start(program: Program) -> object:
    inner = program.inner
    if program.variant.is_reference:
        return program.reference.start(program.x_natural, inner.threat_model.epsilon)
    return start_point(program.x_natural, inner.start or program.distiller.method.start, inner)


def stage_milliseconds(program: Program, device: torch.device) -> dict[str, float]:
    """The STAGES of one step; without those that a step recorded as one whole does not show."""
    clock = Clock(device)
    with timed_parts(program, clock):
        clock.timed("step", program.step)()
    clock.timed("start", lambda: _start(program))()
    parts = clock.milliseconds
    if not {"search", "optimizer"} <= parts.keys():
        return {"optimizer_ms": parts["optimizer"]} if "optimizer" in parts else {}
    outer = parts["step"] - parts["search"] - parts["optimizer"]
    return dict(zip(STAGES, (parts["start"], parts["search"] - parts["start"], outer, parts["optimizer"]), strict=True))
