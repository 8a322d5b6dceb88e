"""Plots of accuracies, as PNG files."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fastadaad.config import ThreatModel
from fastadaad.runtime.text import pixels_text

# Distinguishable without colour vision (Okabe and Ito, 2008); black is reserved for the teacher.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#F0E442")
MARKERS = "osD^vPX*"
LINES = ("-", ":", "--", "-.")
# Rows of a run, one mapping from column to number per epoch.
Rows = Sequence[Mapping[str, float]]
DPI = 150
MIN_SPAN = 5.0  # points of accuracy, so that noise does not fill the picture
PANELS = (("natural_accuracy", "natural"), ("robust_accuracy", "robust"))


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches."""
    # pyplot keeps every figure alive and selects a display for the whole process, so it is not used.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def figure_title(name: str, data: str, threat_model: ThreatModel, attack: str | None = None) -> str:
    """Returns a title that names the data set, the threat model and, if it is one for the figure, the attack."""
    norm = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}.get(threat_model.norm, threat_model.norm)
    title = f"{name}: {data}, {norm}, $\\epsilon$ = {pixels_text(threat_model.epsilon)}"
    return title if attack is None else f"{title}, robust: {attack}"


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
            and robust_accuracy as fractions. Several runs of one name, its seeds, are drawn as their mean and a band
            from the lowest to the highest.
        teacher: The teacher's natural_accuracy and robust_accuracy, drawn as dashed lines.
        title: Title of the figure.
    """
    figure = new_figure(9, 3.6 if len(runs) <= 6 else 4.8)
    for axes, (metric, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for index, (name, seeds) in enumerate(runs.items()):
            style = {"color": COLORS[index % len(COLORS)], "linestyle": LINES[index // len(COLORS) % len(LINES)]}
            by_epoch = _by_epoch(seeds, metric)
            shown = name if len(seeds) == 1 else f"{name}, {len(seeds)} seeds"
            means = [statistics.fmean(accuracies) for accuracies in by_epoch.values()]
            axes.plot([*by_epoch], means, marker=".", label=shown, **style)
            if len(seeds) > 1:
                lowest, highest = ([pick(values) for values in by_epoch.values()] for pick in (min, max))
                axes.fill_between([*by_epoch], lowest, highest, color=style["color"], alpha=0.2, linewidth=0)
        if teacher:
            axes.axhline(100 * teacher[metric], color="black", linestyle="--", linewidth=1, label="teacher")
        axes.set(xlabel="epoch", ylabel=f"{label} accuracy, validation (%)")
        _fit(axes)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


def _by_epoch(seeds: Sequence[Rows], metric: str) -> dict[int, list[float]]:
    """Returns the accuracies of all seeds in per cent, for each epoch that all of them have evaluated."""
    found: dict[int, list[float]] = {}
    for rows in seeds:
        for row in rows:
            if metric in row:
                found.setdefault(round(row["epoch"]), []).append(100 * row[metric])
    return {epoch: values for epoch, values in sorted(found.items()) if len(values) == len(seeds)}


def _fit(axes: Any) -> None:
    """Lets the axes show whole epochs, and at least MIN_SPAN points of accuracy within 0 and 100 %."""
    axes.xaxis.get_major_locator().set_params(integer=True)
    low, high = axes.get_ylim()
    missing = max(0.0, MIN_SPAN - (high - low)) / 2
    axes.set_ylim(max(0.0, low - missing), min(100.0, high + missing))
    axes.grid(alpha=0.3)


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

    @property
    def _error_bars(self) -> list[float] | None:
        """Lengths in points; NaN draws none."""
        if all(spread is None for spread in self.spreads):
            return None
        return [math.nan if spread is None else 100 * spread for spread in self.spreads]

    def plot(self, axes: Any, x: Sequence[float], index: int, **style: Any) -> None:
        """Draws the accuracies in per cent, with the colour and marker of `index`."""
        axes.errorbar(
            x,
            [100 * accuracy for accuracy in self.accuracies],
            yerr=self._error_bars,
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
    widths = [max(2.4, 0.5 * len(names)) for names, _ in panels.values()]
    figure = new_figure(1.8 + sum(widths), 4.2)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (student, (names, series)) in zip(all_axes, panels.items(), strict=True):
        for index, attack in enumerate(series):
            attack.plot(axes, range(len(names)), index, linestyle="none")
            axes.axhline(100 * teacher[attack.label], color=COLORS[index % len(COLORS)], linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_title(student)
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("accuracy (%)")
    all_axes[0].plot([], [], color="black", linestyle="--", linewidth=0.8, label="teacher")
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center")
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)


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
    axes.set(xlabel="epsilon of the training, pixels in [0, 1]", ylabel="accuracy (%)")
    axes.set_xticks(epsilons, [pixels_text(epsilon) for epsilon in epsilons])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)
