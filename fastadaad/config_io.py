"""RunConfig from text: `section.field=value` overrides and saved config.json files."""

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from fastadaad.config import RunConfig, TeacherPolicy
from fastadaad.units import parse_pixels

PIXEL_FIELDS = ("epsilon", "step_size")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig)
    return parser


def _instantiate(parser: ArgumentParser, namespace: Any) -> RunConfig:
    return RunConfig(**vars(parser.instantiate(namespace)))


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with fields replaced: `inner.threat_model.epsilon=8/255`, `optim.epochs=3`, `teacher=null`.

    Raises ValueError, in one line, for an unknown field, a value of the wrong kind or a combination RunConfig refuses.
    """
    parser = _parser()
    parser.set_defaults(asdict(config))
    try:
        return _instantiate(parser, parser.parse_args([f"--{name}={value}" for name, value in map(_split, overrides)]))
    except (ArgumentError, ValueError) as error:
        raise ValueError(_one_line(error) + _suggestion(str(error), config)) from error


def read_config(path: Path) -> RunConfig:
    """The configuration a run saved as config.json. Raises ValueError where the file does not hold one."""
    parser = _parser()
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return _instantiate(parser, parser.parse_object(content))
    except (OSError, ArgumentError, ValueError) as error:  # a JSON error is a ValueError
        raise ValueError(f"{path} does not hold a run's configuration: {_one_line(error)}") from error


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not an override: write section.field=value, such as optim.epochs=3")
    if name == "method":
        raise ValueError(f"a recipe's settings depend on its method: write --method {value} instead of {text}")
    if name.rpartition(".")[2] in PIXEL_FIELDS:
        value = repr(parse_pixels(value))
    if name == "teacher.policy":
        value = json.dumps(asdict(TeacherPolicy.parse(value)))
    return name, value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).replace("unrecognized arguments: --", "unknown setting ").split())


def _suggestion(message: str, config: RunConfig) -> str:
    """The known name closest to an unknown one in `message`, if the message is about one."""
    unknown = re.search(r"unrecognized arguments: --([^=]+)", message)
    if unknown is None:
        return ""
    names = _names(asdict(config))
    same_field = [name for name in names if name.rpartition(".")[2] == unknown[1].rpartition(".")[2]]
    close = same_field or difflib.get_close_matches(unknown[1], names, n=1)
    return f": did you mean {close[0]}?" if close else ""


def _names(section: dict, prefix: str = "") -> list[str]:
    """The dotted names of all settings in a nested section."""
    names: list[str] = []
    for name, value in section.items():
        names += _names(value, f"{prefix}{name}.") if isinstance(value, dict) and value else [prefix + name]
    return names
