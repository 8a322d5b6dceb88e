"""Path from the command line to the first training step: its frames, the modules it enters, and calls upwards.

Import statements, lambdas and generated functions such as a dataclass's __init__ do not count. Generators count each
time that they are resumed.
"""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from types import CodeType, FrameType

import pytest
import torch
from test_layers import FLOOR, PACKAGE

import fastadaad
from fastadaad.cli import COMMANDS, main
from fastadaad.training.distiller import Distiller
from fastadaad.training.self_check import ensure_checked

WORDS = ("train", "demo", "data.num_samples=128", "inner.num_steps=1", "teacher_check=16")


class ReachedKlGradError(Exception):
    """Ends the run at the first kl_grad of the first step."""


@cache
def module_of(code: CodeType) -> str | None:
    """Returns the module of a function of the package, such as inner.search; None for all other code."""
    path = Path(code.co_filename)
    if code.co_name in ("<lambda>", "<module>") or PACKAGE not in path.parents:
        return None
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def own_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yields the frames of the package's functions, the innermost first."""
    while frame is not None:
        if module_of(frame.f_code) is not None:
            yield frame
        frame = frame.f_back


@dataclass
class CallPath:
    """Profiler that records calls from cli.main to the first step, and the frames above that step's first kl_grad."""

    modules: set[str] = field(default_factory=set)
    climbs: list[tuple[str, str]] = field(default_factory=list)
    """Caller and callee of each call into a higher layer; also of each resumption of a generator there."""
    frames: list[str] = field(default_factory=list)
    """Modules of the own frames from cli.main to kl_grad."""
    _in_main: bool = False
    _in_step: bool = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        module = module_of(frame.f_code) if event == "call" else None
        if module is None:
            return
        self._in_main = self._in_main or frame.f_code is main.__code__
        self._in_step = self._in_step or frame.f_code is Distiller.step.__code__
        if self._in_step and module == "ops.kl_grad":
            self.frames = [module_of(own.f_code) or "" for own in own_frames(frame)][::-1]
            raise ReachedKlGradError
        if not self._in_main or self._in_step or module.startswith("data.engines."):
            return  # the engine reads batches in threads of its own, for any caller
        self.modules.add(module)
        caller = next((module_of(own.f_code) for own in own_frames(frame.f_back)), None)
        if caller is not None and FLOOR[room_of(module)] > FLOOR[room_of(caller)]:
            self.climbs.append((caller, module))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> CallPath:
    for module in pkgutil.walk_packages(fastadaad.__path__, "fastadaad."):
        if not module.name.startswith(("fastadaad.kernels", "fastadaad.__main__", "fastadaad.data.engines.dali")):
            importlib.import_module(module.name)
    ensure_checked(torch.device("cpu"))  # the first run on a machine checks the operations
    path, words = CallPath(), [*WORDS, "--run-folder", str(tmp_path_factory.mktemp("run"))]
    sys.setprofile(path)
    try:
        with pytest.raises(ReachedKlGradError):
            main(words)
    finally:
        sys.setprofile(None)
    return path


def test_twelve_frames_lead_from_the_command_line_to_kl_grad(path):
    frames = path.frames[path.frames.index("cli") :]
    assert path.frames[-1] == "ops.kl_grad"
    assert len(frames) <= 12, frames


def test_the_way_to_kl_grad_enters_no_room_twice(path):
    rooms = [room for room, _ in groupby(map(room_of, path.frames))]
    assert len(rooms) == len(set(rooms)), path.frames


# Callbacks: an evaluation iterates over the images of the preflight check, and folding's tracer intercepts a network.
UPWARDS = {
    ("evaluation.batches", "training.preflight"),
    ("models.normalize", "inner.folded_network"),
    ("models.small_cnn", "inner.folded_network"),
}


def test_calls_before_the_first_step_go_down_except_for_callbacks(path):
    """How often a callback is called depends on the layers and the batches, so their kinds are counted."""
    assert set(path.climbs) <= UPWARDS


def test_the_modules_that_are_entered_before_the_first_step_do_not_grow_in_number(path):
    """The package has about 200. All 15 commands add their arguments to the parser, and are not counted."""
    commands = {f"cli.{name.replace('-', '_')}" for name in COMMANDS}
    assert commands <= path.modules
    assert len(path.modules - commands) <= 110 - 13, sorted(path.modules)
