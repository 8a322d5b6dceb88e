"""Picture of the judge: share of the exact kl against passes through the teacher, a line per kind of candidate."""

from collections.abc import Sequence
from pathlib import Path

from fastadaad.evaluation.plots import COLORS, LINES, MARKERS, new_figure

from .pages import Row


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draws a panel for each student (columns) and radius (rows); of each kind the best candidate for each number.

    Args:
        path: Image file to write.
        rows: Rows of policies-judge.csv.
    """
    epochs = sorted({int(row["epoch"]) for row in rows})
    radii = sorted({float(row["epsilon"]) for row in rows})
    kinds = list(dict.fromkeys(row["kind"] for row in rows if row["kind"] != "exact"))
    figure = new_figure(3 * len(epochs) + 1, 3 * len(radii) + 1)
    grid = figure.subplots(len(radii), len(epochs), sharex=True, sharey="row", squeeze=False)
    for radius, line in zip(radii, grid, strict=True):
        for epoch, axes in zip(epochs, line, strict=True):
            here = [row for row in rows if int(row["epoch"]) == epoch and float(row["epsilon"]) == radius]
            for number, kind in enumerate(kinds):
                axes.plot(
                    *zip(*best_of(here, kind), strict=True),
                    label=kind,
                    color=COLORS[number % len(COLORS)],
                    marker=MARKERS[number % len(MARKERS)],
                    linestyle=LINES[number // len(COLORS) % len(LINES)],
                )
            axes.axhline(1, color="black", linewidth=0.6, linestyle=":")
            axes.set_title(f"epoch {epoch}, epsilon {radius:g}")
            axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("passes through the teacher")
    for axes in grid[:, 0]:
        axes.set_ylabel("share of the exact kl")
        axes.set_ylim(bottom=0)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)


def best_of(rows: Sequence[Row], kind: str) -> list[tuple[int, float]]:
    """Returns (passes, share of the exact kl) of the best candidate of a kind for each number of passes."""
    best: dict[int, float] = {}
    for row in rows:
        if row["kind"] == kind:
            passes, share = int(row["teacher_passes"]), float(row["kl_of_exact"])
            best[passes] = max(share, best.get(passes, 0.0))
    return sorted(best.items())
