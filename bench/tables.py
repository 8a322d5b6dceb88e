"""Tables on the terminal, wide enough to read if the output is a file."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table


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
