"""Show the recipes."""

import argparse

from rich.console import Console
from rich.table import Table

EXAMPLE = "fastadaad recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.recipes import RECIPES

    table = Table(title="fastadaad train RECIPE")
    for column in ("recipe", "what it trains", "epochs"):
        table.add_column(column)
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.__doc__, str(recipe().optim.epochs))
    console.print(table)
