"""Measure training steps of a recipe: images/s and memory.

On random images, beside a plain restatement of the authors' loop in the same arithmetic. Both sides alternate.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import add_overrides, batch_sizes, commas, policies, positive
from fastadaad.runtime.text import print_line

if TYPE_CHECKING:
    import torch

    from fastadaad.cli.benchmarks.grid import Cell
    from fastadaad.cli.benchmarks.measuring import Measuring, Row
    from fastadaad.run_config import RunConfig

EXAMPLE = "fastadaad benchmark demo --batch-sizes 32,64 --modes eager,compiled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # The list of all options would take the help beyond 24 lines.
    parser.usage = "fastadaad benchmark RECIPE [OPTIONS] [section.field=value ...]"
    parser.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    parser.add_argument("--method", help="see fastadaad methods; default: the recipe's")
    parser.add_argument("--batch-sizes", type=batch_sizes, default=[], metavar="LIST", help="default: the recipe's")
    parser.add_argument(
        "--precisions", type=commas, default=[], metavar="LIST", help="fp32, tf32, bf16; default: fp32 on a CPU"
    )
    parser.add_argument("--policies", type=policies, default=[], metavar="LIST", help="default: exact")
    parser.add_argument(
        "--modes", type=commas, default=[], metavar="LIST", help="eager, compiled, graph; default: eager on a CPU"
    )
    parser.add_argument("--rounds", type=positive, default=10, metavar="N", help="steps timed; default: %(default)s")
    parser.add_argument("--output", metavar="FOLDER", help="where to write; default: a new folder in runs/")


def run(arguments: argparse.Namespace, console: Console) -> "list[Row]":
    """Measures every cell and returns the rows; an interruption keeps those that are finished."""
    from fastadaad.cli.benchmarks.measuring import Measuring
    from fastadaad.runtime.torch_settings import fitting_threads
    from fastadaad.training.synthetic import images_of

    config, cells, notes, device = _plan(arguments)
    size = images_of(config).size
    with fitting_threads(size, size, device):
        return _measured(
            Measuring(config=config, device=device, rounds=arguments.rounds), cells, notes, arguments.output, console
        )


def _measured(
    measuring: "Measuring", cells: "list[Cell]", notes: list[str], output: str | None, console: Console
) -> "list[Row]":
    """Prints the plan, measures the cells and writes the files."""
    from fastadaad.cli.benchmarks.files import Report
    from fastadaad.cli.benchmarks.measuring import Remaining
    from fastadaad.training.folders import new_folder, remove_if_empty

    report = Report(folder=Path(), facts=measuring.facts, notes=[*notes, *measuring.notes])
    for line in report.notes:
        print_line(console, line)
    left = Remaining(measuring, cells)
    print_line(console, f"{len(cells)} {'cell' if len(cells) == 1 else 'cells'}, {left.first_estimate}")
    report.folder = _folder(output) or new_folder(
        f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_benchmark_{measuring.config.recipe}"
    )
    print_line(console, f"folder: {report.folder}")
    try:
        for number, cell in enumerate(cells, start=1):
            with console.status(f"{number}/{len(cells)}  {cell}"):
                row = left.measured(cell)
            report.add(row)
            print_line(console, f"{number}/{len(cells)}  {cell}: {_result(row)}{left.describe()}")
    finally:
        report.draw()
        remove_if_empty(report.folder)
        if report.rows:
            report.print_table(console)
            print_line(console, f"{report.folder}: {', '.join(path.name for path in report.paths.values())}")
    return report.rows


def _plan(arguments: argparse.Namespace) -> "tuple[RunConfig, list[Cell], list[str], torch.device]":
    """Returns the settings of both sides, the cells, notes about the settings, and the device; raises ValueError."""
    from fastadaad import recipes
    from fastadaad.cli.benchmarks.grid import Choices, cells_of, comparable
    from fastadaad.config_io import override
    from fastadaad.inner.policy_probe import INTERVAL
    from fastadaad.training.build import resolve_device
    from fastadaad.training.folders import check_empty
    from fastadaad.training.synthetic import images_of

    method = {} if arguments.method is None else {"method": arguments.method}
    config = override(recipes.get(arguments.recipe, **method), arguments.overrides)
    if arguments.rounds > INTERVAL - 10:  # a policy's probe would be timed, which random networks may fail
        raise ValueError(f"--rounds is {arguments.rounds}: give at most {INTERVAL - 10}")
    images_of(config)
    both_sides, notes = comparable(config)
    if arguments.output is not None:
        check_empty(Path(arguments.output), "--output")
    device = resolve_device(config.device)
    choices = Choices(
        batch_sizes=arguments.batch_sizes,
        precisions=arguments.precisions,
        policies=arguments.policies,
        modes=arguments.modes,
    )
    return both_sides, cells_of(config, choices, device), notes, device


def _folder(given: str | None) -> Path | None:
    """Makes the folder that the user names, if any."""
    if given is None:
        return None
    Path(given).mkdir(parents=True, exist_ok=True)
    return Path(given)


def _result(row: "Row") -> str:
    """Describes a finished cell in one phrase."""
    if row["status"] != "measured":
        return str(row["status"])
    text = f"{row['images_per_s']:,} images/s"
    if row["speedup_p50"] == "":
        return f"{text}, the plain loop: {row['plain_status']}"
    return f"{text}, {row['speedup_p50']:.2f} times the plain loop"
