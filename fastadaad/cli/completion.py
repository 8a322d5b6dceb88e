"""Completion of the command line by the shell's tab key, with argcomplete.

The shell calls `fastadaad` at each tab, so only names that need no torch are completed.
"""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from fastadaad import methods, recipes
from fastadaad.config_io import setting_names, setting_values

Names = Callable[[str], Iterable[str]]


def _settings(prefix: str) -> list[str]:
    """Completes the name of a setting up to its =, and behind it a value, if the values are a fixed set."""
    name, equals, _ = prefix.partition("=")
    return [f"{name}={value}" for value in setting_values(name)] if equals else [f"{name}=" for name in setting_names()]


def _methods(prefix: str) -> list[str]:
    """Completes the last of several methods with a comma between them."""
    before = prefix[: prefix.rfind(",") + 1]
    return [before + name for name in methods.METHODS]


def _recipes(prefix: str) -> Iterable[str]:
    return recipes.RECIPES


# Destination of an argument -> its words; those of the others are files, or the choices that argparse knows.
WORDS: dict[str, Names] = {
    "recipe": _recipes,
    "recipe_by_name": _recipes,
    "recipe_or_run": _recipes,
    "max_batch": _recipes,
    "method": _methods,
    "methods": _methods,
    "overrides": _settings,
}


def complete(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Prints the completions that the shell asks for in its variables, and ends the process.

    Args:
        parser: Parser with the parsers of all commands.
        **options: Arguments of argcomplete.autocomplete.
    """
    import argcomplete

    for command in _commands(parser):
        for action in command._actions:
            if action.dest in WORDS:
                action.completer = _completer(WORDS[action.dest])  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long", **options)


def _commands(parser: argparse.ArgumentParser) -> Iterable[argparse.ArgumentParser]:
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return subparsers.choices.values()


def _completer(words: Names) -> Callable[..., list[str]]:
    def completions(prefix: str, **_: Any) -> list[str]:
        return [word for word in words(prefix) if word.startswith(prefix)]

    return completions
