"""Train AdaAD students at growing radii, measure at one.

It shows the trade of accuracy for robustness; the radius of the evaluation is the recipe's.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides, add_recipe, commas, recipe_and_overrides, seeds
from fastadaad.runtime.text import print_line

if TYPE_CHECKING:
    from fastadaad.cli.comparison.experiment import Experiment

EXAMPLE = "fastadaad sweep-epsilon fashion-mnist-small --epsilons 0.05,0.1,0.15"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The list of all options would take the help beyond 24 lines.
    parser.usage = "fastadaad sweep-epsilon RECIPE --epsilons LIST [OPTIONS] [SETTINGS]"
    add_recipe(parser)
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--epsilons", required=True, metavar="LIST", help="training radii: 4/255,8/255 or 0.05,0.1")
    parser.add_argument("--method", help="default: adaad")
    parser.add_argument("--seeds", type=seeds, default="0", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--attacks", default="", metavar="LIST", help="default: the recipe's")
    parser.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: runs/sweep-epsilon-RECIPE")


def run(arguments: argparse.Namespace, console: Console) -> "list[Experiment]":
    """Returns the experiments, the teacher's first."""
    from fastadaad.cli.comparison.sweep import sweep_epsilon
    from fastadaad.config import parse_pixels

    recipe, overrides = recipe_and_overrides(arguments)
    epsilons = sorted({parse_pixels(text) for text in commas(arguments.epsilons)})
    if not epsilons:
        raise ValueError("--epsilons is empty: give radii such as 4/255,8/255")
    folder = Path(arguments.run_folder or f"runs/sweep-epsilon-{recipe}")
    experiments = sweep_epsilon(
        recipe,
        overrides,
        epsilons,
        folder=folder,
        method=arguments.method or "adaad",
        seeds=arguments.seeds,
        console=console,
    )
    print_line(console, f"table: {folder / 'table.md'}")
    print_line(console, f"picture: {folder / 'epsilon.png'}")
    return experiments
