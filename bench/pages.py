"""Markdown tables of rows, and their places in the pages."""

import csv
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]


def rows_of(path: Path) -> list[Row]:
    """Returns the rows of a CSV file; an empty list if it does not exist."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def markdown(columns: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table; an empty string without lines."""
    lines = [*lines]
    rule = ["---"] * len([*columns])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *lines)) if lines else ""


def rewritten(text: str, inside: str, name: str) -> str:
    """Returns `text` with `inside` between the markers called `name`. Raises ValueError if a marker is missing."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page has no {begin} ... {end}: put the two lines at the place of the tables")
    return f"{before}{begin}\n\n{inside}\n\n{end}{after}"
