"""List runs with their status, epoch, accuracy and age."""

import argparse
from pathlib import Path

from rich.console import Console

EXAMPLE = "fastadaad runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s"
    )


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Prints one row per run, the last changed one last."""
    from rich.table import Table
    from rich.text import Text

    from fastadaad.cli.reports.run_facts import facts_of, run_folders
    from fastadaad.runtime.text import duration, printable

    folder: Path = arguments.folder
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the folder of the runs, such as the parent of a --run-folder")
    runs = sorted((facts_of(path) for path in run_folders(folder)), key=lambda facts: facts.changed_at)
    if not runs:
        raise ValueError(f"{folder} holds no run: fastadaad train writes to runs/, or to its --run-folder")
    table = Table(title="Runs; accuracy in % on the validation split, of the best epoch", title_justify="left")
    for column in ("run", "status", "epoch", "natural", "robust", "changed"):
        table.add_column(column, overflow="fold", justify="left" if column in ("run", "status") else "right")
    for facts in runs:
        epoch = f"{facts.epoch}/{facts.epochs}" if facts.epochs is not None else ""
        name = facts.folder.name if facts.folder == folder else str(facts.folder.relative_to(folder))
        accuracies = [_percent(facts.natural_accuracy), _percent(facts.robust_accuracy)]
        table.add_row(Text(printable(name)), facts.status, epoch, *accuracies, f"{duration(facts.age_s)} ago")
    console.print(table)


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{100 * accuracy:.1f}"
