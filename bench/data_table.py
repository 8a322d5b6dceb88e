"""Tables of docs/data.md, from the rows of `python -m bench data`."""

from collections.abc import Iterable
from pathlib import Path

from .pages import Row, markdown, rows_of


def spread(row: Row, column: str, digits: int, scale: float = 1.0) -> str:
    """Formats p50 (p20 to p80) of `column`, whose name has one {} for the quantile."""
    p20, p50, p80 = (f"{scale * float(row[column.format(key)]):,.{digits}f}" for key in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def speed_table(rows: Iterable[Row]) -> str:
    """Table with a line per set of images and engine; a later row replaces an earlier one of the same engine."""
    latest = {(row["images"], row["engine"]): row for row in rows}
    columns = ("images", "engine", "augmentation", "images/s", "times torch", "times DataLoader", "first batch, ms")
    lines = [
        [
            row["images"],
            row["engine"],
            row["work"],
            spread(row, "images_per_s_{}", 0),
            spread(row, "times_torch_{}", 2),
            spread(row, "times_dataloader_{}", 2),
            f"{float(row['first_batch_p50_ms']):.0f}",
        ]
        for row in latest.values()
    ]
    return markdown(columns, lines)


def wait_table(rows: Iterable[Row]) -> str:
    latest = {(row["recipe"], row["engine"]): row for row in rows}
    columns = ("recipe", "engine", "images/s", "% of the time spent waiting for data")
    lines = [
        [
            f"`{row['recipe']}`",
            row["engine"],
            spread(row, "images_per_s_{}", 0),
            spread(row, "waiting_share_{}", 2, scale=100),
        ]
        for row in latest.values()
    ]
    return markdown(columns, lines)


def pixel_table(rows: Iterable[Row]) -> str:
    latest = {(row["path"], row["setting"]): row for row in rows}
    columns = ("path", "setting of DALI", "mean difference, 1/255", "largest, 1/255")
    return markdown(
        columns,
        [
            [row["path"], row["setting"], f"{float(row['mean_difference']):.2f}", row["max_difference"]]
            for row in latest.values()
        ],
    )


def memory_table(rows: Iterable[Row]) -> str:
    latest = {row["images"]: row for row in rows}
    columns = ("images", "size, MB", "limit of the process, MB", "growth, MB", "growth over size", "images/s")
    names = ("images", "mb", "limit_mb", "growth_mb", "growth_share", "images_per_s")
    return markdown(columns, [[row[name] for name in names] for row in latest.values()])


def tables(output: Path) -> str:
    """All tables that have rows, each under its heading; `output` is the file of images/s, the others lie beside it."""
    memory = rows_of(beside(output, "memory"))
    sections = (
        ("Images/s for a consumer that only receives the batches, p50 (p20 to p80):", speed_table(rows_of(output))),
        ("Trainings:", wait_table(rows_of(beside(output, "wait")))),
        ("Differences between dali's and torch's pixels:", pixel_table(rows_of(beside(output, "pixels")))),
        ("Memory that resident needs beside the images, in an epoch of shuffled batches:", memory_table(memory)),
    )
    return "\n\n".join(f"{heading}\n\n{table}" for heading, table in sections if table)


def beside(output: Path, name: str) -> Path:
    """Path of data-NAME.csv beside data.csv."""
    return output.with_name(f"{output.stem}-{name}{output.suffix}")
