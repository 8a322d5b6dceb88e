"""Results of attacks as tables of the terminal, as CSV and as JSON."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastadaad.evaluation.accuracy import AttackResult, masking_warning
from fastadaad.runtime.files import write_output
from fastadaad.runtime.text import pixels_text

Models = Sequence[tuple[str, Sequence[AttackResult]]]


def attack_title(result: AttackResult) -> str:
    """Returns the name of the attack and its restarts if it has several: natural, pgd20, pgd20 x2."""
    return result.attack if result.restarts == 1 else f"{result.attack} x{result.restarts}"


def percent(accuracy: float) -> str:
    """Formats a fraction in per cent, with one digit."""
    return f"{100 * accuracy:.1f}"


def table_title(result: AttackResult) -> str:
    """Returns the title of a table of accuracies, with the images and the threat model of one of its results."""
    return f"Accuracy in % on {result.num_images:,} images, {result.norm} epsilon {pixels_text(result.epsilon)}"


def print_accuracies(console: Console, models: Models) -> None:
    """Prints a table with a row per model and a column per attack, then the notes and warnings.

    Args:
        console: Console to print on.
        models: Name and results of each model; all models have the same attacks.
    """
    table = Table(title=table_title(models[0][1][0]))
    table.add_column("model")
    for result in models[0][1]:
        table.add_column(attack_title(result), justify="right")
    for name, results in models:
        table.add_row(name, *[f"{percent(result.accuracy)} ± {100 * result.margin:.1f}" for result in results])
    console.print(table)
    for name, results in models:
        for line in _remarks(results):
            console.print(f"{name}: {line}")


def print_attacks(console: Console, results: Sequence[AttackResult]) -> None:
    """Prints the results of one model, a row per attack and attack stage with its seconds, then notes and warnings."""
    table = Table(title=table_title(results[0]))
    for column in ("attack", "accuracy", "seconds"):
        table.add_column(column, justify="left" if column == "attack" else "right")
    for result in results:
        accuracy = f"{percent(result.accuracy)} ± {100 * result.margin:.1f}"
        table.add_row(attack_title(result), accuracy, f"{result.seconds:,.1f}")
        for stage, stage_accuracy, seconds in result.parts:
            table.add_row(f"  after {stage}", percent(stage_accuracy), f"{seconds:,.1f}")
    console.print(table)
    for line in _remarks(results):
        console.print(line)


def mean_accuracy(results: Iterable[AttackResult]) -> float:
    """Returns the mean accuracy of results on equally many images, a fraction."""
    return statistics.fmean(result.accuracy for result in results)


def print_corruptions(
    console: Console, results: Sequence[AttackResult], averaged: Sequence[str], missing: Sequence[str]
) -> None:
    """Prints the accuracy on corrupted images, a row per corruption and a column per severity, and their means.

    Args:
        console: Console to print on.
        results: One result per corruption and severity, named NAME-SEVERITY.
        averaged: Corruptions of the last row, the mean.
        missing: Corruptions of the benchmark without a result, for a note below the table.
    """
    severities: dict[str, list[AttackResult]] = {}
    for result in results:
        severities.setdefault(result.attack.rpartition("-")[0], []).append(result)
    table = Table(title=f"Accuracy in % by severity, {results[0].num_images:,} images each")
    table.add_column("corruption", no_wrap=True)
    for severity in range(1, 1 + len(severities[averaged[0]])):
        table.add_column(str(severity), justify="right")
    table.add_column("mean", justify="right")
    for name, row in severities.items():
        table.add_row(name, *[percent(result.accuracy) for result in row], percent(mean_accuracy(row)))
    table.add_section()
    means = [mean_accuracy(column) for column in zip(*[severities[name] for name in averaged], strict=True)]
    table.add_row(f"mean of {len(averaged)}", *map(percent, means), percent(statistics.fmean(means)))
    console.print(table)
    if missing:
        console.print(f"not the benchmark's mean, as the folder lacks {', '.join(missing)}")


def _remarks(results: Sequence[AttackResult]) -> list[str]:
    warning = masking_warning(results)
    remarks = [f"{result.attack}: {note}" for result in results for note in result.notes]
    return remarks if warning is None else [*remarks, f"warning: {warning}"]


def csv_bytes(rows: Sequence[dict[str, Any]]) -> bytes:
    """Returns the content of a CSV file; all rows have the same keys."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def write_results(path: Path, models: Models) -> None:
    """Writes the results as CSV, one row per model and attack."""
    rows = [{"model": name} | result.row() for name, results in models for result in results]
    write_output(path, csv_bytes(rows))


def write_json(path: Path, name: str, results: Sequence[AttackResult]) -> None:
    """Writes the results of one model as JSON: its name, the warning or null, and every field of each result."""
    content = {"model": name, "warning": masking_warning(results), "attacks": [asdict(result) for result in results]}
    write_output(path, json.dumps(content, indent=2).encode())
