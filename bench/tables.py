"""Tables on the terminal, wide enough to read where the output is a file."""

from rich.console import Console
from rich.table import Table


def print_table(table: Table) -> None:
    """Print to the terminal in its width, to a file or pipe in 180 columns."""
    console = Console()
    if not console.is_terminal:
        console.width = 180
    console.print(table)
