"""Pictures of runs, as PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastadaad.training.log import read_metrics

# Distinguishable without colour vision too (Okabe and Ito, 2008); black is left to the teacher.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = "osD^vPX*"
LINES = ("-", ":", "--", "-.")
PANELS = (("natural_accuracy", "natural"), ("robust_accuracy", "robust"))


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    # Not pyplot: it keeps every figure alive and wants a display to be chosen for the whole process.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def plot_curves(
    path: Path, runs: Mapping[str, Sequence[Path]], teacher: Mapping[str, float] | None = None, title: str = ""
) -> None:
    """Accuracy on the validation split over the epochs: a colour and line per name, a curve per run folder.

    `teacher` maps natural_accuracy and robust_accuracy to the teacher's own, drawn as dashed lines.
    """
    figure = new_figure(9, 3.6 if len(runs) <= 6 else 4.8)
    for axes, (metric, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for index, (name, folders) in enumerate(runs.items()):
            style = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}
            for number, folder in enumerate(folders):
                rows = [row for row in read_metrics(folder) if metric in row]
                epochs, accuracies = [row["epoch"] for row in rows], [100 * row[metric] for row in rows]
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
    """Accuracies under one attack, one for each place on the x axis; a spread of None draws no bar."""

    label: str
    accuracies: Sequence[float]
    spreads: Sequence[float | None]

    def plot(self, axes: Any, x: Sequence[float], index: int, **style: Any) -> None:
        """Draw in per cent, with the colour and marker of `index`."""
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
    """A panel per student with its methods side by side: a marker per attack, its spread over the seeds as a bar.

    `panels` maps the student to its methods and one series per attack over them; `teacher` maps an attack's label to
    the teacher's accuracy, drawn as a dashed line in the attack's colour.
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
    """One line per attack over the training radius; a vertical line marks the radius of the evaluation."""
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
