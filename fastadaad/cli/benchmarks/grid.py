"""Cells of a benchmark, and the settings in which a recipe's step and the plain program compute the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import product
from operator import attrgetter
from typing import Any, get_args

import torch

from fastadaad.config import Mode, Precision, PrecisionConfig, TeacherPolicy, require, require_choice
from fastadaad.run_config import RunConfig
from fastadaad.runtime.precision import resolved
from fastadaad.training.build import checked_mode
from fastadaad.training.plain_program import REFERENCES

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
MODES = tuple(mode for mode in get_args(Mode) if mode != "auto")
# Settings that the plain programs lack, and what they have instead.
LACKING = {
    "inner.threat_model.norm": "linf",
    "inner.step_factors": None,
    "inner.lower": 0.0,
    "inner.upper": 1.0,
    "optim.optimizer": "sgd",
    "optim.awp_gamma": 0.0,
    "optim.micro_batch": None,
    "optim.grad_clip": None,
    "on_nonfinite": "stop",
    "teacher.beside": None,
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training step to measure."""

    batch_size: int
    precision: Precision
    policy: TeacherPolicy
    mode: Mode

    def __str__(self) -> str:
        return f"batch {self.batch_size}, {self.precision}, {self.policy}, {self.mode}"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Lists of the command line; an empty one stands for the recipe's own setting, or for the defaults of the device.

    These are: bf16 and TF32 on tensor cores, otherwise fp32; all modes on CUDA, otherwise eager.
    """

    batch_sizes: Sequence[int] = ()
    precisions: Sequence[str] = ()
    policies: Sequence[TeacherPolicy] = ()
    modes: Sequence[str] = ()


def cells_of(config: RunConfig, choices: Choices, device: torch.device) -> list[Cell]:
    """Returns every combination of the choices, the modes of a batch size, precision and policy side by side.

    Raises:
        ValueError: A choice that this machine cannot run, or that cannot be compared with the plain program.
    """
    policies = choices.policies or [TeacherPolicy() if config.teacher is None else config.teacher.policy]
    for policy in policies:
        policy.check(config.method_row.through_teacher, config.method)
        require(
            not policy.is_adaptive,
            f"teacher policy {policy} adapts its interval to its error, which random images do not show: name one, "
            f"such as {policy.kind}(every=5)",
        )
    precisions = choices.precisions or _precisions_of(config, device)
    for precision in precisions:
        require_choice("a precision", precision, Precision)
        require(
            precision in PRECISIONS,
            f"precision {precision} has no plain program to compare with: choose fp32, tf32 or bf16",
        )
        resolved(PrecisionConfig.parse(precision), device)  # refuses tf32 on devices other than CUDA
    modes = choices.modes or _modes_of(config, device)
    for mode in modes:
        _check_mode(mode, device)
    combinations = product(choices.batch_sizes or [config.data.batch_size], precisions, policies, modes)
    return [
        Cell(batch_size=size, precision=precision, policy=policy, mode=mode)  # type: ignore[arg-type]
        for size, precision, policy, mode in combinations
    ]


def _precisions_of(config: RunConfig, device: torch.device) -> Sequence[str]:
    given = config.precision
    require(
        given.student == given.teacher,
        f"precision is {given.student} for the student and {given.teacher} for the teacher: the plain program has one, "
        "choose it with --precisions",
    )
    if given.student != "auto":
        return [given.student]
    on_tensor_cores = resolved(given, device).student != "fp32"
    return ["tf32", "bf16"] if on_tensor_cores else ["fp32"]


def _modes_of(config: RunConfig, device: torch.device) -> Sequence[str]:
    if config.mode != "auto":
        return [config.mode]
    return MODES if device.type == "cuda" else ["eager"]


def _check_mode(mode: str, device: torch.device) -> None:
    """Raises ValueError for an unknown mode, and for one that this machine cannot run."""
    require(mode in MODES, f"mode {mode!r} is unknown: choose {', '.join(MODES[:-1])} or {MODES[-1]}")
    require(
        mode != "graph" or device.type == "cuda", f"mode graph needs a CUDA device, not {device.type}: leave it out"
    )
    usable = checked_mode(mode, device)  # type: ignore[arg-type]
    require(
        usable == mode,
        f"mode {mode} failed the self-check of this machine and is off: leave it out, fastadaad doctor says why",
    )


def comparable(config: RunConfig) -> tuple[RunConfig, list[str]]:
    """Returns the recipe with the settings of its method's plain program, and one line if they are not the recipe's.

    Raises:
        ValueError: The method has no plain program, or a setting is one that the plain programs lack.
    """
    if config.method not in REFERENCES:
        raise ValueError(
            f"method {config.method} has no plain program to compare with: choose one of {', '.join(REFERENCES)}"
        )
    for name, plain in LACKING.items():
        if name.startswith("teacher.") and config.teacher is None:
            continue
        given = attrgetter(name)(config)
        require(
            given == plain, f"{name}={given}: the plain program of {config.method} has {_text(plain)}, leave it out"
        )
    options = dict(REFERENCES[config.method].options)
    changed = replace(
        config,
        method_options=options,
        inner=replace(config.inner, start=None, student_eval=True),
        optim=replace(config.optim, ema_decay=0.0),
    )
    differences = _differences(config, changed)
    if not differences:
        return changed, []
    return changed, [f"both sides compute {config.method} as its plain program does: {', '.join(differences)}"]


def _differences(config: Any, changed: Any, section: str = "") -> list[str]:
    """Lists the settings of `changed` that differ from those of `config`."""
    found = []
    for field in fields(config):
        before, after = getattr(config, field.name), getattr(changed, field.name)
        if is_dataclass(before):
            found += _differences(before, after, f"{section}{field.name}.")
        elif isinstance(before, dict):
            names = [name for name in before | after if before.get(name) != after.get(name)]
            found += [_change(f"{section}{field.name}.{name}", before.get(name), after.get(name)) for name in names]
        elif before != after:
            found.append(_change(f"{section}{field.name}", before, after))
    return found


def _change(name: str, before: object, after: object) -> str:
    """Describes a change; None stands for the default."""
    texts = ["default" if value is None else _text(value) for value in (after, before)]
    return f"{name}={texts[0]} (recipe: {texts[1]})"


def _text(value: object) -> str:
    """Writes a value as on the command line."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
