"""Table and picture of the teacher policies' accuracy and speed, from the rows of bench/results."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadaad.evaluation.plots import COLORS, MARKERS, new_figure

from .pages import Row, markdown, rows_of
from .policy_settings import Setting

ATTACKS = ("natural", "pgd20", "autoattack")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One setting: its speed relative to exact, and the accuracies in % of its seeds for each of ATTACKS."""

    policy: str
    precision: str
    images_per_s: float
    times_exact: float
    accuracies: dict[str, list[float]]

    @property
    def name(self) -> str:
        return Setting(policy=self.policy, teacher_precision=self.precision).name

    def mean(self, attack: str) -> float:
        return statistics.fmean(self.accuracies[attack])

    def spread(self, attack: str) -> float:
        return statistics.stdev(self.accuracies[attack])


def lines_of(accuracy_rows: Sequence[Row], speed_rows: Sequence[Row]) -> list[Line]:
    """Returns the settings of `speed_rows` that have accuracies, in the order of `speed_rows`: exact first."""
    measured: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in accuracy_rows:
        accuracies = measured.setdefault((row["policy"], row["teacher_precision"]), {})
        accuracies.setdefault(row["attack"], []).append(100 * float(row["accuracy"]))
    return [
        Line(
            policy=row["policy"],
            precision=row["teacher_precision"],
            images_per_s=float(row["images_per_s"]),
            times_exact=float(row["times_exact_p50"]),
            accuracies=measured[row["policy"], row["teacher_precision"]],
        )
        for row in speed_rows
        if (row["policy"], row["teacher_precision"]) in measured
    ]


def table(lines: Sequence[Line]) -> str:
    """Returns Markdown: mean and standard deviation, and in brackets the difference to exact's mean."""
    columns = ("teacher policy", "images/s", "times exact", *ATTACKS)
    return markdown(columns, [_cells(line, lines[0]) for line in lines])


def _cells(line: Line, exact: Line) -> list[str]:
    cells = [f"`{line.policy}`" + ("" if line.precision == "fp32" else f", teacher in {line.precision}")]
    cells += [f"{line.images_per_s:.0f}", f"{line.times_exact:.2f}"]
    for attack in ATTACKS:
        difference = "" if line is exact else f" ({line.mean(attack) - exact.mean(attack):+.2f})"
        cells.append(f"{line.mean(attack):.2f} ± {line.spread(attack):.2f}{difference}")
    return cells


def plot(path: Path, lines: Sequence[Line]) -> None:
    """Draws accuracy against speed: a panel per attack, a point per setting with the standard deviation over seeds."""
    figure = new_figure(11, 4.2)
    for axes, attack in zip(figure.subplots(1, len(ATTACKS)), ATTACKS, strict=True):
        for index, line in enumerate(lines):
            color = "black" if index == 0 else COLORS[(index - 1) % len(COLORS)]
            style = {"color": color, "marker": MARKERS[index % len(MARKERS)], "capsize": 3, "linestyle": "none"}
            axes.errorbar(line.times_exact, line.mean(attack), line.spread(attack), label=line.name, **style)
        axes.axhline(lines[0].mean(attack), color="black", linewidth=0.6, linestyle=":")
        axes.set(xlabel="speed, times exact", ylabel=f"{attack} accuracy (%)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)


def policy_lines(results: Path) -> list[Line]:
    return lines_of(rows_of(results / "policies.csv"), rows_of(results / "policies-speed.csv"))
