"""Tables on the terminal, wide enough to read if the output is a file, and their rows in bench/results."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from rich.console import Console
from rich.table import Table

from .rows import RESULTS, write_rows


def print_table(table: Table) -> None:
    """Prints in the width of the terminal, or in 180 columns to a file or pipe."""
    console = Console()
    if not console.is_terminal:
        console.width = 180
    console.print(table)


def print_rows(rows: Iterable[Mapping[str, object]], columns: Sequence[str], title: str | None = None) -> None:
    """Prints the named columns of rows as a table."""
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*[str(row[column]) for column in columns])
    print_table(table)


def rewrite_rows(
    name: str,
    groups: Iterable[Iterable[Mapping[str, object]]],
    device: torch.device,
    columns: Sequence[str],
    title: str,
) -> None:
    """Overwrites a CSV file of bench/results, each group of rows as soon as it is measured, and prints all of them."""
    path, found = RESULTS / name, list[Mapping[str, object]]()
    path.unlink(missing_ok=True)
    for group in groups:
        measured = list(group)
        write_rows(path, measured, device)
        found += measured
    print_rows(found, columns, title)
