"""Seconds of training to a given robust accuracy: `python -m bench run time-to-accuracy RECIPE --target 0.6 ...`.

The robust accuracy is measured by the validation attack after each epoch, which does not count as training time.
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.cli.arguments import add_overrides
from fastadaad.config_io import override
from fastadaad.training.folders import choose_run_folder
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

from .rows import RESULTS, write_rows


def first_at(metrics: list[dict[str, float]], target: float) -> dict[str, float] | None:
    """Returns the first row of metrics.csv with at least the target's robust_accuracy; None if no row reaches it."""
    return next((row for row in metrics if row.get("robust_accuracy", -1.0) >= target), None)


def result_row(metrics: list[dict[str, float]], target: float) -> dict[str, object]:
    """Returns a run's columns of the results; seconds and epoch are empty if the target was not reached."""
    reached = first_at(metrics, target) or {}
    return {
        "target": target,
        "seconds": reached.get("seconds", ""),
        "epoch": int(reached["epoch"]) if reached else "",
        "best_robust_accuracy": max(row.get("robust_accuracy", -1.0) for row in metrics),
        "images_per_s": metrics[-1]["images_per_s"],
        "total_seconds": metrics[-1]["seconds"],
    }


def main(argv: list[str]) -> None:
    """Trains and appends a row."""
    parser = argparse.ArgumentParser(prog="python -m bench run time-to-accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    parser.add_argument("--method", help="see fastadaad methods; default: the recipe's")
    parser.add_argument("--target", type=float, required=True, help="robust accuracy, a fraction")
    parser.add_argument("--output", type=Path, default=RESULTS / "time-to-accuracy.csv", help="CSV file for the row")
    options, words = parser.parse_known_args(argv)
    method = {} if options.method is None else {"method": options.method}
    config = override(recipes.get(options.recipe, **method), [*options.overrides, *words])
    console = Console()
    folder = choose_run_folder(None, config, resume=False)
    trainer = Trainer(config, folder, console)
    trainer.train()
    facts = {"recipe": config.recipe, "method": config.method, "mode": trainer.distiller.mode, "seed": config.seed}
    row = facts | result_row(read_metrics(folder), options.target)
    write_rows(options.output, [row], trainer.device)
    console.print(row)
