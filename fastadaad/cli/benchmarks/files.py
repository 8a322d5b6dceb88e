"""Rows of a benchmark as CSV, JSON, Markdown and picture, and as a table on the terminal."""

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from fastadaad.cli.benchmarks.measuring import MEASURED, Row
from fastadaad.cli.benchmarks.picture import draw
from fastadaad.runtime.files import write_output

NAME = "benchmark"
PIPE_WIDTH = 180  # columns of the terminal's table if there is no terminal


def _figure(value: object, form: str) -> str:
    return "" if value == "" else format(float(str(value)), form)


def _spread(row: Row, name: str, form: str) -> str:
    """Writes the median and, in brackets, p20 to p80."""
    low, middle, high = (_figure(row[name.format(key)], form) for key in ("p20", "p50", "p80"))
    return middle and f"{middle} ({low} to {high})"


def _memory(row: Row) -> str:
    ours, plain = (_figure(row[name], ",.0f") for name in ("peak_mib", "plain_peak_mib"))
    return f"{ours or '?'} ({plain or '?'})" if ours or plain else ""


def _or_status(row: Row, column: str, form: str, status: str) -> str:
    return _figure(row[column], form) if row[status] == MEASURED else str(row[status])


# Head of a column -> its text in a row.
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "batch": lambda row: str(row["batch_size"]),
    "precision": lambda row: str(row["precision"]),
    "teacher policy": lambda row: str(row["policy"]),
    "mode": lambda row: str(row["mode"]),
    "images/s": lambda row: _or_status(row, "images_per_s", ",.1f", "status"),
    "ms a step (p20 to p80)": lambda row: _spread(row, "{}_ms", ".4g"),
    "plain loop, images/s": lambda row: _or_status(row, "plain_images_per_s", ",.1f", "plain_status"),
    "speedup (p20 to p80)": lambda row: _spread(row, "speedup_{}", ".2f"),
    "MiB (plain loop)": lambda row: _memory(row),
    "of the peak": lambda row: _figure(row["of_peak"], ".1%"),
}
_TEXT = ("precision", "teacher policy", "mode")
_WIDE = ("ms a step (p20 to p80)", "MiB (plain loop)")
_SETTINGS = ("batch", "precision", "teacher policy")


def _lines(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and the texts of the columns that are not empty in all rows."""
    cells = [{head: text(row) for head, text in COLUMNS.items()} for row in rows]
    heads = [head for head in COLUMNS if any(line[head] for line in cells)]
    return heads, [[line[head] for head in heads] for line in cells]


@dataclass(kw_only=True)
class Report:
    """Rows measured so far, and the files that hold them.

    Args:
        folder: Folder of the files.
        facts: Facts of the whole benchmark, such as recipe, networks, hardware and versions; columns of each row.
        notes: Lines that a reader of the table needs.
    """

    folder: Path
    facts: Row
    notes: Sequence[str]
    rows: list[Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Recipe, networks and method in one line."""
        facts = self.facts
        teacher = f" from {facts['teacher']}" if facts["teacher"] else ""
        return f"{facts['recipe']}: {facts['student']}{teacher}, {facts['method']}, K = {facts['num_steps']}"

    @property
    def paths(self) -> dict[str, Path]:
        """Files by kind."""
        return {kind: self.folder / f"{NAME}.{kind}" for kind in ("csv", "json", "md", "png")}

    def add(self, row: Row) -> None:
        """Adds a row, and writes all files but the picture, so that an interruption keeps it."""
        self.rows.append({**self.facts, **row})
        self._write()

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [*self.rows[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        paths = self.paths
        write_output(paths["csv"], text.getvalue().encode())
        content = {**self.facts, "notes": [*self.notes], "cells": [self._cell(row) for row in self.rows]}
        write_output(paths["json"], json.dumps(content, indent=2).encode())
        write_output(paths["md"], self.markdown().encode())

    def _cell(self, row: Row) -> dict[str, Any]:
        """Returns the columns of a row that are its own; null for what is not known."""
        return {name: None if value == "" else value for name, value in row.items() if name not in self.facts}

    def draw(self) -> None:
        """Draws the picture, if there are rows."""
        if self.rows:
            buffer = io.BytesIO()
            draw(buffer, self.rows, f"{self.title}\n{self.facts['hardware']}")
            write_output(self.paths["png"], buffer.getvalue())

    def markdown(self) -> str:
        """Returns the table as Markdown, with the notes under it."""
        heads, lines = _lines(self.rows)
        rule = ["---" if head in _TEXT else "---:" for head in heads]
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *lines))
        return "\n\n".join([f"**{self.title}**", table, *self.notes]) + "\n"

    def print_table(self, console: Console) -> None:
        """Prints the table; a narrow terminal gets one without the spread and the memory, which the files have."""
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        table = self._table()
        if console.measure(table).minimum > console.width:
            table = self._table(without=_WIDE)
        console.print(table)

    def _table(self, without: Collection[str] = ()) -> Table:
        """Returns the table for the terminal, in which settings that all cells share are in the title."""
        heads, lines = _lines(self.rows)
        columns = dict(zip(heads, zip(*lines, strict=True), strict=True))
        columns = {head: texts for head, texts in columns.items() if head not in without}
        shared = {head: columns.pop(head)[0] for head in _SETTINGS if len({*columns[head]}) == 1}
        words = [f"batch {text}" if head == "batch" else text for head, text in shared.items()]
        table = Table(
            title="\n".join([self.title, *filter(None, [", ".join(words)])]),
            title_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        for head in columns:
            table.add_column(
                _narrow(head.replace(" (", "\n(")), justify="left" if head in _TEXT else "right", no_wrap=True
            )
        for line in zip(*columns.values(), strict=True):
            table.add_row(*map(_narrow, line))
        return table


def _narrow(text: str) -> str:
    return text.replace(" to ", "–").replace("plain loop, ", "plain\n")
