"""Results as people look at them: one table, one CSV, one picture."""

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastadaad.evaluation.accuracy import AttackResult


def attack_title(result: AttackResult) -> str:
    """natural, fgsm, pgd20, or pgd20 x2 with two restarts."""
    return result.attack if result.restarts == 1 else f"{result.attack} x{result.restarts}"


def percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


def print_accuracies(console: Console, models: Sequence[tuple[str, Sequence[AttackResult]]]) -> None:
    """One row per (name, results), one column per attack; all models have the same attacks."""
    first = models[0][1][0]
    table = Table(title=f"Accuracy in % on {first.num_images:,} images, {first.norm} epsilon {first.epsilon:g}")
    table.add_column("model")
    for result in models[0][1]:
        table.add_column(attack_title(result), justify="right")
    for name, results in models:
        table.add_row(name, *[f"{percent(result.accuracy)} ± {100 * result.margin:.1f}" for result in results])
    console.print(table)


def write_results(path: Path, models: Sequence[tuple[str, Sequence[AttackResult]]]) -> None:
    """The same as CSV, one row per model and attack."""
    rows = [{"model": name} | result.row() for name, results in models for result in results]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
