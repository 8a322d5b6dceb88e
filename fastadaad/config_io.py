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

from fastadaad.config import TeacherPolicy, parse_pixels
from fastadaad.run_config import RunConfig
from fastadaad.runtime.file_limits import CONFIG_BYTES, check_size
from fastadaad.runtime.text import printable

PIXEL_FIELDS = ("epsilon", "step_size")
_LETTERS = r"""-\w.+/()~"'="""
# One word, or a flat list of words. Nothing in it can match in two ways, which long texts would take for ever to try.
PLAIN = re.compile(rf"[{_LETTERS}]*|\[[{_LETTERS},\s]*\]")
# One line that YAML takes for text: it begins with no sign of YAML's and has no colon at the end of a word.
TEXT = re.compile(r"""(?!\s*(?:[][{}!&*?|>%@`"']|-\s))(?!.*:(?:\s|$)).*""")
# jsonargparse's refusal of a value: the setting, and the value where it is told.
REFUSED = re.compile(r'Parser key "([\w.]+)":(?:.*(?:Got|Given) value: ?(.*))?')
WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "null"}

Kind = Literal["section", "table", "text", "plain"]
"""Of a setting: fields of a class, fields of any name, TEXT, or what is PLAIN."""


class _Setting(NamedTuple):
    """What the type of a setting says about its values."""

    kind: Kind
    hint: Any
    """The type itself."""

    @property
    def is_optional(self) -> bool:
        """It may be null."""
        return type(None) in get_args(self.hint)


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """`config` with fields replaced: `inner.threat_model.epsilon=8/255`, `optim.epochs=3`, `teacher=null`.

    Raises ValueError, in one line, for an unknown field, a value of the wrong kind or a combination RunConfig refuses.
    """
    try:
        arguments = [f"--{name}={value}" for name, value in map(_split, overrides)]
        parser = _parser()
        parser.set_defaults(asdict(config))
        return _instantiate(parser, parser.parse_args(arguments))
    except (ArgumentError, ValueError, OverflowError) as error:
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
    except (OSError, ArgumentError, ValueError, OverflowError, RecursionError) as error:  # a JSON error is a ValueError
        raise ValueError(
            f"{path} does not hold a run's configuration: {_one_line(error)}; give the folder of another run, or "
            "repair this file"
        ) from error


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(RunConfig)
    return parser


def _instantiate(parser: ArgumentParser, namespace: Any) -> RunConfig:
    config = RunConfig(**vars(parser.instantiate(namespace)))
    for name, value in _settings_in(asdict(config)):
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not abs(number) < 2**63:  # nor is NaN
                raise ValueError(f"{name} is {number}: give a finite number below 2**63")
    return config


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
    in_table = _Setting("plain", Any) if parent and parent.kind == "table" else None
    setting = settings.get(name, in_table)
    if setting is None:
        raise ValueError(f"unknown setting {name}={value}: {_suggestion(name, list(settings))}")
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
        settings[prefix + name] = _Setting(kind, hint)
    return settings


def _is_plain(value: Any, kind: Kind) -> bool:
    if isinstance(value, str):
        return (TEXT.fullmatch(value) if kind == "text" else PLAIN.fullmatch(value.strip())) is not None
    return not isinstance(value, dict | list)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    elif isinstance(error, OverflowError):  # of an integer that is to be a float
        text = "a number is too large: give one below 2**63"
    elif isinstance(error, ArgumentError):
        text = _in_our_words(text)
    return printable(text)


def _in_our_words(text: str) -> str:
    """What jsonargparse says of the value of one setting; anything else as it is."""
    match = REFUSED.match(text)
    setting = _settings(RunConfig).get(match[1]) if match else None
    if match is None or setting is None or setting.kind == "section":
        return text
    given = "has no possible value" if match[2] is None else f"is {match[2]!r}"
    return f"{match[1]} {given}: give {_wanted(setting.hint)}"


def _wanted(hint: Any) -> str:
    """What a value of this type is written as."""
    parts = get_args(hint)
    if get_origin(hint) is Literal:
        return f"{', '.join(parts[:-1])} or {parts[-1]}"
    if get_origin(hint) is tuple:
        return f"a list [{_wanted(parts[0])}, ...]"
    return WORDS.get(hint) or " or ".join(map(_wanted, parts))


def _suggestion(unknown: str, names: Sequence[str]) -> str:
    """The known name closest to an unknown one, or where to find them all."""
    field = unknown.rpartition(".")[2]
    same_field = [name for name in names if name.rpartition(".")[2] == field]
    close = same_field or difflib.get_close_matches(unknown, names, n=1)
    return f"did you mean {close[0]}?" if close else "fastadaad train RECIPE --print-config shows all settings"
