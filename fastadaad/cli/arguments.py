"""Arguments that several commands have."""

import argparse
import json
import re

from fastadaad.config import TeacherPolicy


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds words of the form section.field=value."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # otherwise argparse would list it among missing words
        metavar="section.field=value",
        help="change settings; train --print-config shows all",
    )


def add_download(parser: argparse.ArgumentParser) -> None:
    """Adds --download, short for data.download=true (see cli.parse)."""
    parser.add_argument("--download", action="store_true", help="fetch the data set where it is missing")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds --config, a file that cli/config_file.py reads."""
    parser.add_argument("--config", metavar="FILE", help="settings in YAML or JSON, such as a run's config.json")


def add_prefix(parser: argparse.ArgumentParser) -> None:
    """Adds --prefix, which chooses a network of a weights file."""
    parser.add_argument("--prefix", metavar="NAME", help="which network of a file of several, such as student")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, as the first word or as --recipe."""
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="see fastadaad recipes")
    parser.add_argument("--recipe", dest="recipe_by_name", metavar="RECIPE", help="the same by name")
    add_config(parser)


def recipe_and_overrides(arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Returns the recipe and all overrides of add_recipe, add_overrides and --attacks.

    Raises:
        ValueError: No recipe is given.
    """
    overrides = list(arguments.overrides)
    if arguments.attacks:
        overrides.append(f"evaluation.attacks={json.dumps(commas(arguments.attacks))}")
    if arguments.recipe_by_name is not None:
        # The first word, if any, is an override too.
        return arguments.recipe_by_name, [*filter(None, [arguments.recipe]), *overrides]
    if arguments.recipe is None:
        raise ValueError("no recipe is named: see fastadaad recipes")
    return arguments.recipe, overrides


def commas(text: str) -> list[str]:
    """Splits a comma-separated list."""
    return [part for part in text.split(",") if part]


def positive(text: str) -> int:
    """Argument type: a whole number of 1 or more."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def seeds(text: str) -> list[int]:
    """Argument type: a comma-separated list of seeds."""
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds: write them as 0,1")
    return [int(seed) for seed in text.split(",")]


def batch_sizes(text: str) -> list[int]:
    """Argument type: a comma-separated list of batch sizes."""
    return [positive(part) for part in text.split(",")]


def policies(text: str) -> list[TeacherPolicy]:
    """Argument type: teacher policies such as `exact,refreshed(every=10)`, split at commas outside brackets."""
    try:
        return [TeacherPolicy.parse(part) for part in re.findall(r"[^,(]+(?:\([^)]*\))?", text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
