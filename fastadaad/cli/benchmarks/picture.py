"""Picture of a benchmark: images/s as bars, a panel per precision, beside the plain program."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from fastadaad.cli.benchmarks.measuring import MEASURED, Row
from fastadaad.evaluation.plots import COLORS, DPI, new_figure

PLAIN, PLAIN_COLOR = "plain loop", "#9A9A9A"


def draw(file: Path | IO[bytes], rows: Sequence[Row], title: str) -> None:
    """Draws the median of images/s of each cell, with p20 to p80 as an error bar.

    Args:
        file: PNG file to write, or a binary file object.
        rows: Rows of measuring.Measuring; the plain program of a batch size and precision is drawn from the first.
        title: Title of the figure.
    """
    precisions = list(dict.fromkeys(str(row["precision"]) for row in rows))
    sizes = list(dict.fromkeys(int(str(row["batch_size"])) for row in rows))
    names = list(dict.fromkeys(_name(row) for row in rows))
    width = max(2.4, 0.32 * (len(names) + 1) * len(sizes) + 0.6)
    figure = new_figure(max(5.0, 1.0 + width * len(precisions)), 4.0)
    panels = figure.subplots(1, len(precisions), squeeze=False)[0]
    for axes, precision in zip(panels, precisions, strict=True):
        own = [row for row in rows if row["precision"] == precision]
        _bars(axes, [_first(own, size) for size in sizes], sizes, 0, len(names), prefix="plain_", label=PLAIN)
        for number, name in enumerate(names):
            of_name = {int(str(row["batch_size"])): row for row in own if _name(row) == name}
            _bars(axes, [of_name.get(size) for size in sizes], sizes, number + 1, len(names), label=name)
        axes.set_xticks(range(len(sizes)), [f"batch {size}" for size in sizes])
        axes.set_title(precision)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    panels[0].set_ylabel("training images/s")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(title, fontsize="medium")
    figure.savefig(file, dpi=DPI)


def _name(row: Row) -> str:
    """Name of the cell's series: its mode, and its policy unless that is exact."""
    return str(row["mode"]) if row["policy"] == "exact" else f"{row['mode']}, {row['policy']}"


def _first(rows: Sequence[Row], size: int) -> Row | None:
    return next((row for row in rows if int(str(row["batch_size"])) == size), None)


def _bars(
    axes: Any,
    rows: Sequence[Row | None],
    sizes: Sequence[int],
    number: int,
    num_names: int,
    *,
    label: str,
    prefix: str = "",
) -> None:
    """Draws one series, a bar per batch size; `out of memory` and the like stand at the place of a bar."""
    width = 0.8 / (num_names + 1)
    color = PLAIN_COLOR if label == PLAIN else COLORS[(number - 1) % len(COLORS)]
    for position, (row, size) in enumerate(zip(rows, sizes, strict=True)):
        x = position - 0.4 + width * (number + 0.5)
        shown = label if position == 0 else "_"
        if row is None:  # the cell was not measured, as the benchmark was interrupted
            axes.bar(x, 0, width, color=color, label=shown)
        elif (status := str(row[f"{prefix}status"])) != MEASURED:
            axes.bar(x, 0, width, color=color, label=shown)
            axes.text(x, 0, status, rotation=90, ha="center", va="bottom", fontsize="x-small")
        else:
            slow, median, fast = (1e3 * size / float(str(row[f"{prefix}{key}_ms"])) for key in ("p80", "p50", "p20"))
            error = [[median - slow], [fast - median]]
            axes.bar(x, median, 0.92 * width, yerr=error, capsize=2, color=color, ecolor="black", label=shown)
