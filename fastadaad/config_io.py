"""RunConfig from text: `section.field=value` overrides and saved config.json files.

Values are converted by the type hints of the settings. Nothing else is read from text: no names of classes or files, no
nested values.
"""

import difflib
import math
import re
import reprlib
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastadaad.config import PrecisionConfig, TeacherPolicy, parse_pixels
from fastadaad.run_config import RunConfig
from fastadaad.runtime.json_files import JsonError, json_value, reason
from fastadaad.runtime.text import printable

PIXEL_FIELDS = ("epsilon", "step_size")
# Sections that can be written as one string.
STRING_FORMS = (TeacherPolicy, PrecisionConfig)
WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string", NoneType: "null"}
NULL = ("null", "~")
LIMIT = 2**63
"""Numbers have to be smaller in magnitude."""


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Returns `config` with some settings replaced.

    Args:
        config: Configuration of a run.
        overrides: Settings as `section.field=value`: `inner.threat_model.epsilon=8/255`, `teacher=null`,
            `evaluation.attacks=[natural,pgd20]`, `teacher.policy=refreshed(every=5)`. The last one counts.

    Raises:
        ValueError: Unknown setting, value of the wrong type, or a combination that RunConfig refuses; in one line.
    """
    settings = asdict(config)
    try:
        for text in overrides:
            _set(settings, text)
        return _build(RunConfig, settings)
    except ValueError as error:
        raise ValueError(printable(str(error))) from error


def check_override(text: str) -> None:
    """Checks name and type of one override; whether it fits the others is known when all are there.

    Raises:
        ValueError: Unknown setting, or a value of the wrong type; in one line.
    """
    name, _, value = text.partition("=")
    hint = _hint(name, value)
    section = _section(hint)
    if section in STRING_FORMS and value.lower() not in NULL:
        section.parse(value)
    else:
        _convert(name, None if value.lower() in NULL else value, hint)


def read_config(path: Path) -> RunConfig:
    """Reads the configuration that a run saved as config.json.

    Raises:
        ValueError: The file does not hold a configuration.
    """
    try:
        content = json_value(path)
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return _build(RunConfig, content)
    except (OSError, ValueError) as error:  # a JSON error is a ValueError
        remedy = "give the folder of another run, or repair this file"
        raise JsonError(f"{path} does not hold a run's configuration: {printable(reason(error))}; {remedy}") from error


def _set(settings: dict[str, Any], text: str) -> None:
    """Writes one override into the nested dict of all settings."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not an override: write section.field=value, such as optim.epochs=3")
    if name == "method":
        raise ValueError(f"a recipe's settings depend on its method: write --method {value} instead of {text}")
    hint = _hint(name, value)
    *sections, field = name.split(".")
    for section in sections:
        if settings.get(section) is None:
            settings[section] = {}
        settings = settings[section]
    settings[field] = None if value.lower() in NULL else value
    section_type = _section(hint)
    if section_type in STRING_FORMS and settings[field] is not None:
        settings[field] = asdict(section_type.parse(value))


def _hint(name: str, value: str) -> Any:
    """Returns the type hint of a setting by its dotted name. Raises ValueError for an unknown setting."""
    hints = _hints(RunConfig)
    parent = name.rpartition(".")[0]
    if name not in hints and get_origin(hints.get(parent)) is dict:
        return Any
    if name not in hints:
        raise ValueError(f"unknown setting {name}={value}: {_suggestion(name, list(hints))}")
    return hints[name]


@cache
def _hints(section: type, prefix: str = "") -> dict[str, Any]:
    """Type hints of all settings below `section`, sections included, by their dotted names."""
    hints: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        hints[prefix + name] = hint
        if (below := _section(hint)) is not None:
            hints |= _hints(below, f"{prefix}{name}.")
    return hints


def _section(hint: Any) -> Any:
    """Returns the dataclass in a type hint, or None."""
    return next((part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)), None)


def _build(section: type, values: dict[str, Any], prefix: str = "") -> Any:
    """Converts the values of a section and returns it as its dataclass."""
    hints = get_type_hints(section)
    for name, value in values.items():
        if name not in hints:
            suggestion = _suggestion(prefix + name, list(_hints(RunConfig)))
            raise ValueError(f"unknown setting {prefix}{name}={reprlib.repr(value)}: {suggestion}")
    for field in fields(section):
        if field.name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{prefix}{field.name} is missing: give a value")
    return section(**{name: _convert(prefix + name, value, hints[name]) for name, value in values.items()})


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Converts a value, JSON or text, to the type of the setting `name`."""
    if value is None:
        if NoneType in get_args(hint):
            return None
        raise ValueError(f"{name} is null: give a value, or leave it out")
    section = _section(hint)
    if section is not None or get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{name} is a section: set its fields one by one, as {name}.FIELD=VALUE")
        if section is not None:
            return _build(section, value, f"{name}.")
        return {key: _convert(f"{name}.{key}", option, Any) for key, option in value.items()}
    if isinstance(value, str) and name.rpartition(".")[2] in PIXEL_FIELDS:
        return parse_pixels(value)
    try:
        return _leaf(value, hint)
    except ValueError:
        raise ValueError(f"{name} is {reprlib.repr(value)}: give {described_type(hint)}") from None


def _leaf(value: Any, hint: Any) -> Any:
    """Converts a plain value. Raises ValueError if it does not fit the hint."""
    if get_origin(hint) is tuple:
        return tuple(_leaf(item, get_args(hint)[0]) for item in _items(value))
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError
    alternatives = [part for part in get_args(hint) if part is not NoneType]
    if alternatives:
        return _leaf(value, alternatives[0])
    return CONVERTERS[hint](value)


def _items(value: Any) -> Sequence[Any]:
    """Returns the items of a list, which may be written as `[a, b]` or `a,b`."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"\s*\[([^][]*)\]\s*|\s*([^][]*\S)\s*", value)):
        inside = match[1] if match[1] is not None else match[2]
        return [item.strip().strip("\"'") for item in inside.split(",")] if inside.strip() else []
    raise ValueError


def _whole_number(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,19}", value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < LIMIT:
        return value
    raise ValueError


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if math.isfinite(number) and abs(number) < LIMIT:
        return number
    raise ValueError


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "false": False}.get(value.lower())
    if isinstance(value, bool):
        return value
    raise ValueError


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def _option(value: Any) -> Any:
    """Converts an option of a method, whose type only the method knows: a boolean, a number, a string or a list."""
    is_list = isinstance(value, str) and ("," in value or value.startswith("["))
    if is_list or isinstance(value, list | tuple):
        return tuple(_string(item) for item in _items(value))
    for convert in (_boolean, _whole_number, _number, _string):
        try:
            return convert(value)
        except ValueError:
            continue
    raise ValueError


CONVERTERS: dict[Any, Any] = {int: _whole_number, float: _number, bool: _boolean, str: _string, Any: _option}


def described_type(hint: Any) -> str:
    """Describes the values of a setting's type hint, such as a whole number."""
    parts = get_args(hint)
    if hint is Any:
        return "a number, true, false, a string or a list of strings"
    if get_origin(hint) is Literal:
        return f"{', '.join(parts[:-1])} or {parts[-1]}"
    if get_origin(hint) is tuple:
        return f"a list [{described_type(parts[0])}, ...]"
    return WORDS.get(hint) or " or ".join(map(described_type, parts))


# Names that other programs give to settings.
SPELLINGS = {
    "lr": "optim.learning_rate",
    "wd": "optim.weight_decay",
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "workers": "data.num_workers",
    "eps": "inner.threat_model.epsilon",
    "alpha": "inner.step_size",
    "steps": "inner.num_steps",
    "arch": "student.name",
    "gpu": "device",
}


def setting_names() -> list[str]:
    """Returns the dotted names of all settings that one override can set."""
    return [name for name, hint in _hints(RunConfig).items() if _section(hint) in (None, *STRING_FORMS)]


def setting_values(name: str) -> tuple[str, ...]:
    """Returns the values of a setting that has a fixed set of them; none for the others and for unknown names."""
    hint = _hints(RunConfig).get(name)
    literal = next((part for part in (hint, *get_args(hint)) if get_origin(part) is Literal), None)
    return ("true", "false") if hint is bool else get_args(literal)


def setting_named(field: str) -> str | None:
    """Returns the dotted name of the setting that is called `field` here or in other programs; None: none exists."""
    same_field = (name for name in _hints(RunConfig) if name.rpartition(".")[2] == field)
    return SPELLINGS.get(field) or next(same_field, None)


def _suggestion(unknown: str, names: Sequence[str]) -> str:
    """Suggests the known name closest to an unknown one, or a command that lists all names."""
    named = setting_named(unknown.rpartition(".")[2])
    close = [named] if named else difflib.get_close_matches(unknown, names, n=1)
    return f"did you mean {close[0]}?" if close else "fastadaad train RECIPE --print-config shows all settings"
