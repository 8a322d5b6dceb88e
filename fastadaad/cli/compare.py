"""Compare methods: train, evaluate, tables, figures.

Finished parts are kept and reused.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides, add_recipe, commas, recipe_and_overrides, seeds
from fastadaad.runtime.text import print_line

if TYPE_CHECKING:
    from fastadaad.cli.comparison.experiment import Experiment

# Enough to see curves and a table, too few to judge a method by.
QUICK_EPOCHS = 5

EXAMPLE = "fastadaad compare fashion-mnist --methods all --seeds 0,1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The list of all options would take the help beyond 24 lines.
    parser.usage = "fastadaad compare RECIPE [OPTIONS] [section.field=value ...]"
    add_recipe(parser)
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--methods", default="pgd-at,adaad", metavar="LIST", help="or all; default: %(default)s")
    parser.add_argument("--students", default="", metavar="LIST", help="networks; default: the recipe's")
    parser.add_argument("--seeds", type=seeds, default="0", metavar="LIST", help="default: %(default)s")
    parser.add_argument("--attacks", default="", metavar="LIST", help="default: the recipe's")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher first")
    parser.add_argument(
        "--quick", action="store_true", help=f"a look: {QUICK_EPOCHS} epochs, in runs/compare-RECIPE-quick"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the students, computed hours and memory; stop")
    parser.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: runs/compare-RECIPE")


def run(arguments: argparse.Namespace, console: Console) -> "list[Experiment]":
    """Returns the experiments, the teacher's first; none for --dry-run."""
    from fastadaad.cli.comparison.compare import compare
    from fastadaad.cli.machine_report import summarize_ops

    recipe, overrides = recipe_and_overrides(arguments)
    names = commas(arguments.methods)
    if not names:
        raise ValueError("--methods is empty: name some, such as pgd-at,adaad, or all")
    folder = Path(arguments.run_folder or f"runs/compare-{recipe}{'-quick' if arguments.quick else ''}")
    if arguments.quick:
        overrides = [f"optim.epochs={QUICK_EPOCHS}", *overrides]
    if arguments.dry_run:
        from fastadaad.cli.comparison.compare import student_configs
        from fastadaad.cli.comparison.dry_run import print_plan

        configs = student_configs(recipe, overrides, names, commas(arguments.students), arguments.seeds)
        print_plan(configs, folder, console)
        return []
    console.print(summarize_ops())
    experiments = compare(
        recipe,
        overrides,
        folder=folder,
        names=names,
        students=commas(arguments.students),
        seeds=arguments.seeds,
        from_scratch=arguments.from_scratch,
        console=console,
    )
    print_line(console, f"table: {folder / 'table.md'}")
    print_line(console, f"pictures: {folder / 'table.png'}, {folder / 'curves.png'}")
    return experiments
