"""Settings that a run changes when it is resumed, by `--allow section.field=value`.

Each checkpoint holds the changes so far, so a resumed run keeps them although its command line names the old values.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from fastadaad.config_io import override
from fastadaad.run_config import RunConfig

# Settings that no state in a checkpoint depends on. Anything else, such as a network or a seed, makes another run.
CHANGEABLE = (
    "optim.epochs",
    "optim.learning_rate",
    "optim.base_batch_size",
    "optim.micro_batch",
    "optim.weight_decay",
    "optim.grad_clip",
    "optim.schedule",
    "optim.milestones",
    "optim.warmup",
    "optim.awp_gamma",
    "optim.awp_begin",
    "optim.awp_form",
    "evaluation.attacks",
    "evaluation.restarts",
    "evaluation.batch_size",
    "evaluation.mode",
    "evaluation.precision",
    "evaluation.every_epochs",
    "evaluation.num_images",
    "early_stop_epochs",
    "log_every",
    "checkpoint_every",
    "on_nonfinite",
    "rank_timeout_s",
    "trackers",
)

COLUMNS = ("step", "setting", "before", "after")

# One changed setting: the COLUMNS, with values as JSON has them; a step of None is that of the next start.
Change = dict[str, Any]


def with_changes(config: RunConfig, changes: Sequence[Change]) -> RunConfig:
    """Returns `config` with the changes of an earlier start of the run.

    Raises:
        ValueError: A change is of another setting than CHANGEABLE, or `config` has a value that the run never had.
    """
    last = {}
    for change in changes:
        name, now = change["setting"], value_of(config, check_changeable(change["setting"]))
        known = [value for other in changes if other["setting"] == name for value in (other["before"], other["after"])]
        if now not in known:
            raise ValueError(
                f"{name} is {now}, and the run changed it from {change['before']} to {known[-1]}: leave it out, or add "
                f"--allow {name}={_text(now)}"
            )
        last[name] = change["after"]
    return override(config, [f"{name}={_text(value)}" for name, value in last.items()])


def allowed_changes(config: RunConfig, allow: Sequence[str]) -> tuple[RunConfig, list[Change]]:
    """Changes settings of a run at its next start.

    Args:
        config: Configuration of the run up to now.
        allow: Settings as `section.field=value`.

    Returns:
        The new configuration, and a Change for each setting with another value than before.

    Raises:
        ValueError: The state of the run depends on a setting, or a value is refused.
    """
    names = dict.fromkeys(text.partition("=")[0] for text in allow)
    for name in filter(partial(_exists, config), names):  # the others are left to override, which suggests a name
        check_changeable(name)
    changed = override(config, allow)
    for name in names:
        check_changeable(name)
    pairs = [(name, value_of(config, name), value_of(changed, name)) for name in names]
    changes = [
        {"step": None, "setting": name, "before": before, "after": after}
        for name, before, after in pairs
        if before != after
    ]
    if changed.optim.swa_begin is not None and changed.optim.epochs != config.optim.epochs:
        raise ValueError("optim.epochs decides when SWA begins: a run with optim.swa_begin keeps its epochs")
    return changed, changes


def check_changeable(name: str) -> str:
    """Returns the name of a setting. Raises ValueError if the state of a run depends on it."""
    if name not in CHANGEABLE:
        raise ValueError(
            f"--allow {name}: the state of the run depends on it, start another run; what can change is "
            f"{', '.join(CHANGEABLE)}"
        )
    return name


def check_epochs(config: RunConfig, step: int, steps_per_epoch: int) -> None:
    """Raises ValueError if `step` optimiser steps are more than the epochs of `config` have."""
    if step > config.optim.epochs * steps_per_epoch:
        raise ValueError(
            f"optim.epochs is {config.optim.epochs}, and the run has trained {step} steps of {steps_per_epoch} per "
            f"epoch: allow {-(-step // steps_per_epoch)} or more"
        )


def value_of(config: RunConfig, name: str) -> Any:
    """Value of the setting section.field, as JSON has it."""
    value: Any = json.loads(json.dumps(asdict(config)))
    for part in name.split("."):
        value = value[part]
    return value


def _exists(config: RunConfig, name: str) -> bool:
    try:
        value_of(config, name)
    except (KeyError, TypeError):
        return False
    return True


def table(changes: Sequence[Change]) -> bytes:
    """Returns the changes as a file with a line for each."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _text(value) for name, value in change.items()} for change in changes)
    return text.getvalue().encode()


def described(change: Change) -> str:
    """Describes a change in one line."""
    before, after = _text(change["before"]), _text(change["after"])
    return f"changed from step {change['step']} on: {change['setting']} {before} -> {after}"


def _text(value: Any) -> str:
    """Writes a value as an override has it."""
    return value if isinstance(value, str) else json.dumps(value)
