"""RunConfig from text: `section.field=value` overrides and saved config.json files.

jsonargparse imports what a `class_path` names, and calls it where any value is allowed; a section may name a file that
it reads; and text is YAML to it, which can name types and repeat its parts without end. So all that it gets here are
plain values of settings that exist.
"""

import difflib
import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from fastadaad.config import TeacherPolicy
from fastadaad.file_limits import CONFIG_BYTES, check_size
from fastadaad.printable import printable
from fastadaad.run_config import RunConfig
from fastadaad.units import parse_pixels

PIXEL_FIELDS = ("epsilon", "step_size")
_WORD = r"""[\w.+/()~"'=-]*"""
# One word, or a flat list of words.
PLAIN = re.compile(rf"\s*(?:{_WORD}|\[(?:\s*{_WORD}\s*,)*\s*{_WORD}\s*\])\s*")
# One line that YAML takes for text: it begins with no sign of YAML's and has no colon at the end of a word.
TEXT = re.compile(r"""(?!\s*(?:[][{}!&*?|>%@`"']|-\s))(?!.*:(?:\s|$)).*""")

Kind = Literal["section", "table", "text", "plain"]
"""Of a setting: fields of a class, fields of any name, TEXT, or what is PLAIN."""


class _Setting(NamedTuple):
    """What the type of a setting says about its values."""

    kind: Kind
    is_optional: bool
    """It may be null."""


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with fields replaced: `inner.threat_model.epsilon=8/255`, `optim.epochs=3`, `teacher=null`.

    Raises ValueError, in one line, for an unknown field, a value of the wrong kind or a combination RunConfig refuses.
    """
    try:
        arguments = [f"--{name}={value}" for name, value in map(_split, overrides)]
        parser = _parser()
        parser.set_defaults(asdict(config))
        return _instantiate(parser, parser.parse_args(arguments))
    except (ArgumentError, ValueError) as error:
        raise ValueError(_one_line(error)) from error


def read_config(path: Path) -> RunConfig:
    """The configuration a run saved as config.json. Raises ValueError where the file does not hold one."""
    try:
        check_size(path, CONFIG_BYTES)
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        for name, value in _settings_in(content):
            _check(name, value)
        parser = _parser()
        return _instantiate(parser, parser.parse_object(content))
    except (OSError, ArgumentError, ValueError, RecursionError) as error:  # a JSON error is a ValueError
        raise ValueError(f"{path} does not hold a run's configuration: {_one_line(error)}") from error


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig)
    return parser


def _instantiate(parser: ArgumentParser, namespace: Any) -> RunConfig:
    return RunConfig(**vars(parser.instantiate(namespace)))


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not an override: write section.field=value, such as optim.epochs=3")
    if name == "method":
        raise ValueError(f"a recipe's settings depend on its method: write --method {value} instead of {text}")
    if name == "teacher.policy":
        return name, json.dumps(asdict(TeacherPolicy.parse(value)))
    if name.rpartition(".")[2] in PIXEL_FIELDS:
        value = repr(parse_pixels(value))
    _check(name, None if value.lower() in ("null", "~") else value)
    return name, value


def _settings_in(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names and values in a nested object; sections are not among them, null and empty ones are."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _settings_in(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _check(name: str, value: Any) -> None:
    """Raises ValueError for an unknown setting, and for a value that is no plain one and no list of plain ones."""
    settings = _settings(RunConfig)
    parent = settings.get(name.rpartition(".")[0])
    in_table = _Setting("plain", False) if parent and parent.kind == "table" else None
    setting = settings.get(name, in_table)
    if setting is None:
        raise ValueError(f"unknown setting {name}={value}{_suggestion(name, list(settings))}")
    if value is None and not setting.is_optional:
        raise ValueError(f"{name} is null: give a value, or leave it out")
    if setting.kind in ("section", "table"):
        if value not in (None, {}):
            raise ValueError(f"{name} is a section: set its fields one by one, as {name}.FIELD=VALUE")
    elif not all(_is_plain(part, setting.kind) for part in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{name} is set to {reprlib.repr(value)}: give a plain value, or a list of plain values")


@cache
def _settings(section: type, prefix: str = "") -> dict[str, _Setting]:
    """All settings below `section`, by their dotted names; sections are among them."""
    settings: dict[str, _Setting] = {}
    for name, hint in get_type_hints(section).items():
        parts = (hint, *get_args(hint))
        below = next((part for part in parts if isinstance(part, type) and is_dataclass(part)), None)
        kind: Kind = "text" if hint in (str, str | None) else "plain"
        if below is not None:
            kind = "section"
            settings |= _settings(below, f"{prefix}{name}.")
        elif get_origin(hint) is dict:
            kind = "table"
        settings[prefix + name] = _Setting(kind, type(None) in parts)
    return settings


def _is_plain(value: Any, kind: Kind) -> bool:
    if isinstance(value, str):
        return (TEXT if kind == "text" else PLAIN).fullmatch(value) is not None
    return not isinstance(value, dict | list)


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))


def _suggestion(unknown: str, names: Sequence[str]) -> str:
    """The known name closest to an unknown one."""
    field = unknown.rpartition(".")[2]
    same_field = [name for name in names if name.rpartition(".")[2] == field]
    close = same_field or difflib.get_close_matches(unknown, names, n=1)
    return f": did you mean {close[0]}?" if close else ""
