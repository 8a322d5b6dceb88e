"""List published robust teachers."""

import argparse

from rich import box
from rich.console import Console
from rich.table import Table

EXAMPLE = "fastadaad teachers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments: `fastadaad teachers` has none."""


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Prints the table of robust teachers."""
    from fastadaad.models.robust_teachers import ROBUST_TEACHERS

    table = Table(
        title="RobustBench's figures in %, linf 8/255; AA: AutoAttack",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    for column in ("name", "data set", "network"):
        table.add_column(column, no_wrap=True)
    for column in ("natural", "AA"):
        table.add_column(column, justify="right", no_wrap=True)
    for teacher in ROBUST_TEACHERS:
        figures = (f"{teacher.natural:.2f}", f"{teacher.autoattack:.2f}")
        table.add_row(teacher.name, teacher.data, teacher.network, *figures)
    console.print(table)
    console.print(
        "file to look for: NAME.pt, in RobustBench's folder models/DATA/Linf\n"
        "to use it: fastadaad train RECIPE --teacher NAME"
    )
