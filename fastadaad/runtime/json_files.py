"""The small JSON files of this package: of a bounded size, of the types of a dataclass, and named in their errors.

A file may be damaged, edited by hand, or untrusted: nothing of it is used before all of it is checked.
"""

import json
import math
import os
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from fastadaad.runtime.text import InputError
from fastadaad.runtime.untrusted_files import CONFIG_BYTES, check_size

Kind = TypeVar("Kind")

LIMIT = 2**63
"""Whole numbers have to be smaller in magnitude."""


class JsonError(InputError):
    """A JSON file that cannot be used; the message is one line with its path and the remedy."""


def read_json(path: Path, kind: type[Kind], remedy: str, *, limit: int = CONFIG_BYTES) -> Kind:
    """Reads a file that holds one value of a type.

    Args:
        path: JSON file.
        kind: Dataclass, list[...], dict[str, ...], or a plain type.
        remedy: What the user can do about a damaged file; the end of the message.
        limit: Size in bytes that is read at most.

    Returns:
        The value; lists are tuples if the type says so.

    Raises:
        JsonError: The file cannot be read, is no JSON, or holds another type.
    """
    try:
        return checked(json_value(path, limit), kind)
    except (OSError, ValueError, TypeError) as error:
        raise JsonError(f"{path} cannot be read ({reason(error)}): {remedy}") from error


def reason(error: Exception) -> str:
    """Returns why a file cannot be read, in one line."""
    known = error.strerror if isinstance(error, OSError) else None
    return known or " ".join(str(error).split()) or type(error).__name__


def json_value(path: str | os.PathLike[str], limit: int = CONFIG_BYTES) -> Any:
    """Reads JSON in UTF-8, without NaN, infinities and repeated names.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no file, too large, no such JSON, or nested too deeply.
    """
    check_size(path, limit)
    try:
        return json.loads(Path(path).read_bytes(), parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds a name twice")
    return found


def checked(value: Any, kind: Any, name: str = "it") -> Any:
    """Returns a value of JSON as `kind`.

    Args:
        value: Value of JSON.
        kind: Type hint, see read_json.
        name: Name of the value in messages.

    Raises:
        ValueError: The value has another type, a number is not finite, or a dataclass refuses its fields.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        return None if value is None and NoneType in parts else checked(value, parts[0], name)
    if origin is Literal:
        return value if value in parts and type(value) is str else _wrong(name, f"one of {', '.join(parts)}")
    if is_dataclass(kind):
        return _checked_fields(value, kind, name)
    if origin is dict:
        items = _of_type(value, dict, name)
        return {key: checked(item, parts[1], f"{name}.{key[:40]}") for key, item in items.items()}
    if origin is list:
        return [checked(item, parts[0], f"an item of {name}") for item in _of_type(value, list, name)]
    if origin is tuple:
        return _checked_tuple(value, parts, name)
    return _checked_plain(value, kind, name)


def _checked_fields(value: Any, kind: Any, name: str) -> Any:
    """Returns a JSON object as a dataclass, which has all of its fields."""
    given, hints = _of_type(value, dict, name), get_type_hints(kind)
    required = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    if missing := sorted(required - given.keys()):
        raise ValueError(f"{missing[0]} is missing in {name}")
    if unknown := sorted(given.keys() - hints.keys()):
        raise ValueError(f"{name} holds {unknown[0][:40]!r}, which is unknown")
    return kind(**{field: checked(item, hints[field], field) for field, item in given.items()})


def _checked_tuple(value: Any, parts: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    items = _of_type(value, list, name)
    kinds = [parts[0]] * len(items) if parts[1:] == (...,) else list(parts)
    if len(kinds) != len(items):
        _wrong(name, f"a list of {len(kinds)}")
    return tuple(checked(item, kind, f"an item of {name}") for item, kind in zip(items, kinds, strict=True))


def _checked_plain(value: Any, kind: type, name: str) -> Any:
    if kind is float and type(value) in (int, float) and abs(value) < LIMIT and math.isfinite(value):
        return float(value)
    if kind is int:
        return value if type(value) is int and abs(value) < LIMIT else _wrong(name, "a whole number")
    return _of_type(value, kind, name) if kind is not float else _wrong(name, "a finite number")


def _of_type(value: Any, kind: type, name: str) -> Any:
    return value if type(value) is kind else _wrong(name, WORDS.get(kind, kind.__name__))


def _wrong(name: str, wanted: str) -> NoReturn:
    raise ValueError(f"{name} is not {wanted}")


WORDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", NoneType: "null"}
