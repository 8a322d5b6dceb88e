"""Plots of accuracies, as PNG files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

# Distinguishable without colour vision (Okabe and Ito, 2008); black is reserved for the teacher.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = "osD^vPX*"
LINES = ("-", ":", "--", "-.")
# Rows of a run, one mapping from column to number per epoch.
Rows = Sequence[Mapping[str, float]]
PANELS = (("natural_accuracy", "natural"), ("robust_accuracy", "robust"))


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches."""
    # pyplot keeps every figure alive and selects a display for the whole process, so it is not used.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_curves(
    path: Path | IO[bytes],
    runs: Mapping[str, Sequence[Rows]],
    teacher: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Plots the natural and the robust accuracy on the validation split over the epochs.

    Args:
        path: PNG file to write, or a binary file object.
        runs: Runs by name. A run is its rows of metrics.csv, which hold the epoch and, if measured, natural_accuracy
            and robust_accuracy as fractions. A name has one colour and line style, a run one curve.
        teacher: The teacher's natural_accuracy and robust_accuracy, drawn as dashed lines.
        title: Title of the figure.
    """
    figure = new_figure(9, 3.6 if len(runs) <= 6 else 4.8)
    for axes, (metric, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for index, (name, all_rows) in enumerate(runs.items()):
            style = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}
            for number, rows in enumerate(all_rows):
                measured = [row for row in rows if metric in row]
                epochs, accuracies = [row["epoch"] for row in measured], [100 * row[metric] for row in measured]
                axes.plot(epochs, accuracies, marker=".", label=name if number == 0 else None, **style)
        if teacher:
            axes.axhline(100 * teacher[metric], color="black", linestyle="--", linewidth=1, label="teacher")
        axes.set(xlabel="epoch", ylabel=f"{label} accuracy, validation (%)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


@dataclass(frozen=True, kw_only=True)
class Series:
    """Accuracies under one attack, one for each position on the x axis.

    Args:
        label: Label of the legend.
        accuracies: Fractions.
        spreads: Standard deviations as fractions; None draws no error bar.
    """

    label: str
    accuracies: Sequence[float]
    spreads: Sequence[float | None]

    def plot(self, axes: Any, x: Sequence[float], index: int, **style: Any) -> None:
        """Draws the accuracies in per cent, with the colour and marker of `index`."""
        axes.errorbar(
            x,
            [100 * accuracy for accuracy in self.accuracies],
            yerr=[100 * (spread or 0) for spread in self.spreads],
            color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)],
            label=self.label,
            capsize=3,
            **style,
        )


def plot_methods(
    path: Path,
    panels: Mapping[str, tuple[Sequence[str], Sequence[Series]]],
    teacher: Mapping[str, float],
    title: str = "",
) -> None:
    """Plots a panel per student with its methods side by side, a marker per attack and its spread over the seeds.

    Args:
        path: PNG file to write.
        panels: Methods of each student, and one series per attack over them.
        teacher: The teacher's accuracy by label of the attack, drawn as a dashed line in the attack's colour.
        title: Title of the figure.
    """
    figure = new_figure(1.2 + 4.2 * len(panels), 4.2)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (student, (names, series)) in zip(all_axes, panels.items(), strict=True):
        for index, attack in enumerate(series):
            attack.plot(axes, range(len(names)), index, linestyle="none")
            axes.axhline(100 * teacher[attack.label], color=COLORS[index % len(COLORS)], linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_title(student)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy (%), dashed: teacher")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title)
    figure.savefig(path, dpi=120)


def plot_against_epsilon(
    path: Path, epsilons: Sequence[float], series: Sequence[Series], evaluation_epsilon: float, title: str = ""
) -> None:
    """Plots one line per attack over the radius of the training.

    Args:
        path: PNG file to write.
        epsilons: Radii of the training, in pixel units.
        series: Accuracies at these radii, one series per attack.
        evaluation_epsilon: Radius of the evaluation, marked by a vertical line.
        title: Title of the figure.
    """
    figure = new_figure(6.4, 4)
    axes = figure.subplots()
    for index, attack in enumerate(series):
        attack.plot(axes, epsilons, index)
    axes.axvline(evaluation_epsilon, color="black", linestyle="--", linewidth=0.8, label="radius of the evaluation")
    axes.set(xlabel="epsilon of the training, pixel units", ylabel="accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
