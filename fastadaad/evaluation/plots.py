"""Pictures of runs, as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastadaad.run_log import read_metrics

# Distinguishable without colour vision too (Okabe and Ito, 2008).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
PANELS = (("natural_accuracy", "natural"), ("robust_accuracy", "robust"))


def plot_curves(
    path: Path, runs: Mapping[str, Sequence[Path]], teacher: Mapping[str, float] | None = None, title: str = ""
) -> None:
    """Accuracy on the validation split over the epochs: a colour per name, a line per run folder.

    `teacher` maps natural_accuracy and robust_accuracy to the teacher's own, drawn as dashed lines.
    """
    # Not pyplot: it keeps every figure alive and wants a display to be chosen for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (metric, label) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for color, (name, folders) in zip(COLORS, runs.items(), strict=False):
            for number, folder in enumerate(folders):
                rows = [row for row in read_metrics(folder) if metric in row]
                epochs, accuracies = [row["epoch"] for row in rows], [100 * row[metric] for row in rows]
                axes.plot(epochs, accuracies, color=color, marker=".", label=name if number == 0 else None)
        if teacher:
            axes.axhline(100 * teacher[metric], color="black", linestyle="--", linewidth=1, label="teacher")
        axes.set(xlabel="epoch", ylabel=f"{label} accuracy, validation (%)")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
