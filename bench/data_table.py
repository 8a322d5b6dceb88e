"""The tables of docs/data.md, from the rows of `python -m bench data`."""

from collections.abc import Iterable
from pathlib import Path

from .readme import Row, markdown, rows_of

BEGIN, END = "<!-- data:begin -->", "<!-- data:end -->"


def spread(row: Row, column: str, digits: int, scale: float = 1.0) -> str:
    """p50 (p20 to p80) of `column`, whose name has one {} for the quantile."""
    p20, p50, p80 = (f"{scale * float(row[column.format(key)]):,.{digits}f}" for key in ("p20", "p50", "p80"))
    return f"{p50} ({p20} to {p80})"


def speed_table(rows: Iterable[Row]) -> str:
    """Each engine on each set of images; a later row replaces an earlier one of the same engine."""
    latest = {(row["images"], row["engine"]): row for row in rows}
    columns = ("images", "engine", "what it does", "images/s", "times torch", "times DataLoader", "first batch, ms")
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


def tables(output: Path) -> str:
    """All that have rows, each under its sentence; `output`: the file of images/s, beside which the others are."""
    parts = (
        ("Images/s for a consumer that does nothing, p50 (p20 to p80):", speed_table(rows_of(output))),
        ("Trainings:", wait_table(rows_of(beside(output, "wait")))),
        ("dali's pixels against torch's:", pixel_table(rows_of(beside(output, "pixels")))),
    )
    return "\n\n".join(f"{sentence}\n\n{table}" for sentence, table in parts if table)


def beside(output: Path, name: str) -> Path:
    """data-NAME.csv of data.csv."""
    return output.with_name(f"{output.stem}-{name}{output.suffix}")


def write_page(page: Path, inside: str) -> None:
    """Put `inside` between the markers of `page`, which is made where it does not exist.

    Raises ValueError where a page has no markers.
    """
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no {BEGIN} ... {END}: put the two lines where the tables shall stand")
    page.write_text(f"{before}{BEGIN}\n\n{inside}\n\n{END}{after}")
