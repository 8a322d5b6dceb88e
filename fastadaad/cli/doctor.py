"""Show versions, backends, and what is missing or broken."""

import argparse

from rich.console import Console

from fastadaad.cli.arguments import add_overrides

EXAMPLE = "fastadaad doctor --verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify", action="store_true", help="run the whole self-check again, compiling included")
    parser.add_argument("--max-batch", metavar="RECIPE", help="find the largest batch whose training step fits")
    parser.add_argument("--layouts", action="store_true", help="list the cached layouts of networks")
    add_overrides(parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.cli import machine_report as doctor

    if arguments.max_batch:
        find_max_batch(arguments.max_batch, arguments.overrides, console)
        return
    if arguments.overrides:
        raise ValueError(f"{arguments.overrides[0]} changes a recipe: name one with --max-batch RECIPE")
    result = doctor.verify(console) if arguments.verify else None
    doctor.print_report(console, layouts=arguments.layouts)
    if result is not None and result.failures:
        raise ValueError(result.summary)


def find_max_batch(recipe: str, overrides: list[str], console: Console) -> None:
    from fastadaad import recipes
    from fastadaad.cli.max_batch import print_max_batch
    from fastadaad.config_io import override

    print_max_batch(override(recipes.get(recipe), overrides), console)
