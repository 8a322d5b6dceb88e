"""Runs a command of `fastadaad` and keeps every accuracy as a row: `python -m bench run compare|sweep-epsilon ...`.

All words after `run` except --output belong to the command of `fastadaad`. `run teacher RECIPE [section.field=value]`
attacks a recipe's teacher alone. `run time-to-accuracy` has its own options.
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastadaad import cli, recipes
from fastadaad.cli.comparison.experiment import Experiment, finish
from fastadaad.cli.comparison.table import result_rows
from fastadaad.config_io import override
from fastadaad.training.build import resolve_device

from . import time_to_accuracy
from .rows import RESULTS, write_rows


def attack_teacher(recipe: str, *overrides: str) -> list[Experiment]:
    """Attacks the teacher of a recipe with the attacks of its evaluation; goes on after an interruption."""
    config = override(recipes.get(recipe), overrides)
    experiments = [Experiment(config, Path("runs") / f"teacher-{recipe}", label="teacher", is_teacher=True)]
    finish(experiments, Console())
    return experiments


def main(argv: list[str]) -> None:
    """Runs the command and appends its rows."""
    if argv[:1] == ["time-to-accuracy"]:
        time_to_accuracy.main(argv[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m bench run", description=__doc__)
    parser.add_argument("command", choices=("compare", "sweep-epsilon", "teacher", "time-to-accuracy"))
    parser.add_argument("--output", type=Path, help="CSV file for the rows; default: bench/results/RECIPE.csv")
    options, words = parser.parse_known_args(argv)
    if options.command == "teacher":
        experiments = attack_teacher(*words)
    else:
        arguments = cli.parse([options.command, *words])
        experiments = arguments.run(arguments, Console())
    config = experiments[0].config
    rows = [{"recipe": config.recipe} | row for row in result_rows(experiments)]
    write_rows(options.output or RESULTS / f"{config.recipe}.csv", rows, resolve_device(config.device))
