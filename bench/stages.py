"""Milliseconds of a training step's stages: start, inner loop, outer loss with backward, optimizer."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from fastadaad.inner.start import start_point
from fastadaad.training import plain_program as reference

from .networks import Program

STAGES = ("start_ms", "inner_ms", "outer_ms", "optimizer_ms")


class Clock:
    """Accumulates the milliseconds of calls by name; on CUDA it synchronizes before and after each call."""

    def __init__(self, device: torch.device) -> None:
        self.milliseconds: dict[str, float] = {}
        self._device = device

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return 1e3 * time.perf_counter()

    def timed(self, name: str, function: Callable) -> Callable:
        """Wraps `function` so that its time is added to `name`."""

        def call(*arguments, **keywords):
            begin = self.now()
            result = function(*arguments, **keywords)
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + self.now() - begin
            return result

        return call


@contextmanager
def timed_stages(program: Program, clock: Clock) -> Iterator[None]:
    """Times the program's inner loop as `search` and its optimizer's steps as `optimizer` inside the context."""
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
    """Returns the STAGES of one step; a step recorded as a single graph lacks the hidden stages."""
    clock = Clock(device)
    with timed_stages(program, clock):
        clock.timed("step", program.step)()
    clock.timed("start", lambda: _start(program))()
    spent = clock.milliseconds
    if not {"search", "optimizer"} <= spent.keys():
        return {"optimizer_ms": spent["optimizer"]} if "optimizer" in spent else {}
    outer = spent["step"] - spent["search"] - spent["optimizer"]
    return dict(zip(STAGES, (spent["start"], spent["search"] - spent["start"], outer, spent["optimizer"]), strict=True))
