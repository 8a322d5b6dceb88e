"""Show the methods, what they need, and their options."""

import argparse

from rich import box
from rich.console import Console
from rich.table import Table

EXAMPLE = "fastadaad methods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.methods.table import EVERY_ROW, METHODS

    table = Table(title="fastadaad train RECIPE --method METHOD method_options.OPTION=VALUE", box=box.SIMPLE_HEAD)
    for column in ("method", "paper", "needs", "options"):
        table.add_column(column, overflow="fold")
    for method in METHODS.values():
        needs = [
            need for need, needed in (("teacher", method.needs_teacher), ("labels", method.needs_labels)) if needed
        ]
        options = [f"{option}={getattr(method.options, option)}" for option in method.reads if option not in EVERY_ROW]
        table.add_row(method.name, method.paper, ", ".join(needs), "\n".join(options))
    console.print(table)
    console.print(
        "METHOD+igdm adds IGDM's term. With any method: method_options.statistics, method_options.loss_scale, "
        "optim.ema_decay, optim.swa_begin, optim.awp_gamma"
    )
