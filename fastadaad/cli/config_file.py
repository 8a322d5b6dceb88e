"""--config FILE: settings of a file, YAML or JSON, as overrides before those of the command line.

A run's config.json is such a file. It may hold any part of the settings, and names its recipe and method itself.
"""

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fastadaad.config_io import check_override
from fastadaad.runtime.json_files import json_value, reason
from fastadaad.runtime.text import InputError, printable
from fastadaad.runtime.untrusted_files import CONFIG_BYTES, check_size

log = logging.getLogger(__name__)


class ConfigFileError(InputError):
    """A file of settings that cannot be used; the message is one line that names the file and the key."""


def take_config(arguments: argparse.Namespace) -> None:
    """Reads the file of --config into the recipe, method and overrides of a command.

    The recipe of the command line comes first, then the file's settings, then the overrides of the command line.

    Raises:
        ConfigFileError: The file cannot be read, has a wrong or unknown key, or names no recipe and neither does the
            command line.
    """
    if arguments.recipe is not None and "=" in arguments.recipe:  # the first word may be a setting
        arguments.overrides.insert(0, arguments.recipe)
        arguments.recipe = None
    path = Path(arguments.config)
    settings = read_settings(path)
    recipe, method = settings.pop("recipe", None), settings.pop("method", None)
    for name, value in (("recipe", recipe), ("method", method)):
        if not isinstance(value, str | None):
            raise ConfigFileError(f"{path}: {name} is no name, see fastadaad {name}s")
    arguments.overrides[:0] = overrides_of(path, settings)
    if getattr(arguments, "recipe_by_name", None) is None:
        arguments.recipe = arguments.recipe or recipe
        if arguments.recipe is None:
            raise ConfigFileError(f"{path} names no recipe: add a line such as recipe: demo, or give RECIPE")
    _take_method(arguments, path, method)


def _take_method(arguments: argparse.Namespace, path: Path, method: str | None) -> None:
    """Uses the file's method unless the command line names others, and warns if its settings were another's."""
    if method is None:
        return
    if "method" in arguments and arguments.method is None:
        arguments.method = method
    given = arguments.method if "method" in arguments else arguments.methods
    if given != method and not getattr(arguments, "print_config", False):  # which prints JSON alone
        log.warning(f"{path} has the settings of {method}: {given} gets the same ones")


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the settings of a file, as nested dicts.

    Raises:
        ConfigFileError: The file cannot be read, or does not hold settings by name.
    """
    try:
        content = json_value(path) if path.suffix == ".json" else _yaml_value(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigFileError(f"{path} cannot be read ({_reason(error)}): give settings in YAML or JSON") from error
    if not isinstance(content, dict):
        raise ConfigFileError(f"{path} holds no settings by name: write lines such as seed: 1")
    return content


def overrides_of(path: Path, settings: dict[str, Any]) -> list[str]:
    """Returns the settings of a file as overrides.

    Raises:
        ConfigFileError: A setting is unknown, or its value has the wrong type.
    """
    overrides = []
    try:
        # One by one: aliases of YAML may make far more than there are settings, of which the first is unknown.
        for name, value in _leaves(settings):
            overrides.append(f"{name}={_text(value)}")
            check_override(overrides[-1])
    except ValueError as error:
        raise ConfigFileError(f"{path}: {printable(str(error))}") from error
    return overrides


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML of plain values, which refuses a repeated name as JSON does here."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise ValueError("it holds a name twice")
        return found


def _yaml_value(path: Path) -> Any:
    check_size(path, CONFIG_BYTES)
    try:
        # The numbers of a date or an hour may be no date or hour, which is a ValueError.
        return yaml.load(path.read_bytes().decode(), _Loader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reason(error: Exception) -> str:
    """Returns why a file cannot be read; of a YAML error the problem and its line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return reason(error)


def _leaves(settings: dict[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields the values that are no sections by their dotted names; an empty section has none."""
    for name, value in settings.items():
        if isinstance(value, dict) and depth < 8:  # settings are nested three deep
            yield from _leaves(value, f"{prefix}{name}.", depth + 1)
        else:
            yield f"{prefix}{name}", value


def _text(value: Any) -> str:
    """Returns a value as an override has it; what is nested in a list is nowhere a setting."""
    if isinstance(value, list):
        return f"[{', '.join('[]' if isinstance(item, list | dict) else _text(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)
