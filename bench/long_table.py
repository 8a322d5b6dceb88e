"""Table and picture of long trainings: accuracy of each setting, and its difference to exact paired by seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastadaad.evaluation.plots import COLORS, MARKERS, new_figure

from .flops import OUTER_PASSES, network_cost, step_cost
from .networks import PAIRS
from .pages import Row, markdown, rows_of
from .policy_settings import TABLES, Setting, Table
from .policy_table import ATTACKS

TABLE_NAMES = ("long", "cifar10")
COMPUTED_PAIR = "paper"  # the teacher has 48 times the student's FLOPs


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Accuracies in % of a setting and its differences to exact, over the seeds that both have."""

    mean: float
    difference: float
    error: float | None
    """Standard error of the mean difference; None with one seed."""

    @classmethod
    def of(cls, accuracies: dict[str, float], exact: dict[str, float]) -> "Paired":
        """Pairs two settings by seed.

        Args:
            accuracies: Accuracy of each seed.
            exact: Accuracy of each seed of exact.

        Raises:
            ValueError: They have no seed in common.
        """
        differences = [accuracies[seed] - exact[seed] for seed in accuracies if seed in exact]
        if not differences:
            raise ValueError(f"no seed of {sorted(accuracies)} is one of exact's, {sorted(exact)}")
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
        return cls(mean=statistics.fmean(accuracies.values()), difference=statistics.fmean(differences), error=error)

    def cell(self, with_difference: bool) -> str:
        """Text of the table: 67.40 (-0.30 ± 0.21)."""
        if not with_difference:
            return f"{self.mean:.2f}"
        error = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{self.mean:.2f} ({self.difference:+.2f}{error})"


def accuracies_of(rows: Sequence[Row], attack: str) -> dict[str, dict[str, float]]:
    """Returns the accuracy in % under an attack, by setting and seed."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["attack"] == attack:
            found.setdefault(row["setting"], {})[row["seed"]] = 100 * float(row["accuracy"])
    return found


def computed_gain(chosen: Table, setting: Setting, teacher_runs: float, pair_name: str = COMPUTED_PAIR) -> float:
    """Returns FLOPs of a step of exact over those of a setting, on the networks of a pair.

    Args:
        chosen: Table of the setting.
        setting: Method and steps of the search.
        teacher_runs: Passes of the teacher in a search, forward and backward.
        pair_name: Networks that are counted.
    """
    pair = PAIRS[pair_name]
    costs = [network_cost(network, pair.image_shape) for network in pair.networks("meta")]

    def flops(one: Setting, runs: float) -> float:
        steps = chosen.config(one, seed=0).inner.num_steps
        return step_cost(*costs, steps, runs, runs, outer=OUTER_PASSES[one.method]).flops

    exact = chosen.settings[0]
    return flops(exact, chosen.config(exact, seed=0).inner.num_steps) / flops(setting, teacher_runs)


def runs_of(rows: Sequence[Row], setting: Setting) -> float:
    """Returns the mean number of teacher runs in a search, over the seeds of a setting."""
    return statistics.fmean(float(row["teacher_runs"]) for row in rows if row["setting"] == setting.name)


def table(chosen: Table, rows: Sequence[Row], speeds: Sequence[Row]) -> str:
    """Returns Markdown with a line per setting that has accuracies, and a column per attack of the rows.

    Args:
        chosen: Table of the settings.
        rows: Accuracies.
        speeds: Measured speeds; without any, the table has no column of them.
    """
    by_attack = {attack: found for attack in ATTACKS if (found := accuracies_of(rows, attack))}
    measured = {row["setting"]: f"{float(row['times_exact_p50']):.2f}" for row in speeds}
    exact, lines = chosen.settings[0], []
    for setting in chosen.settings:
        name = setting.name
        if by_attack and all(name in found for found in by_attack.values()):
            runs = runs_of(rows, setting)
            text = f"`{setting.policy}`" + (f", {setting.note}" if setting.note else "")
            cells = [text if setting.method == exact.method else f"`{setting.method}`, no teacher"]
            cells += [measured.get(name, "")] if measured else []
            cells += [f"{runs:.1f}", f"{computed_gain(chosen, setting, runs):.1f}"]
            for found in by_attack.values():
                cells.append(Paired.of(found[name], found[exact.name]).cell(with_difference=setting is not exact))
            lines.append(cells)
    speed = ("times exact, measured",) if measured else ()
    return markdown(("search", *speed, "teacher runs", "times exact at ratio 48, computed", *by_attack), lines)


def plot(path: Path, curves: Sequence[Row]) -> None:
    """Draws accuracy on the validation split by epoch: a panel each for natural and robust, a line per setting.

    Args:
        path: PNG file.
        curves: Rows with setting, seed, epoch, natural and robust. A line is the mean over seeds, a band their range.
    """
    figure = new_figure(9, 3.6)
    names = list(dict.fromkeys(row["setting"] for row in curves))
    for axes, column in zip(figure.subplots(1, 2), ("natural", "robust"), strict=True):
        for index, name in enumerate(names):
            epochs: dict[int, list[float]] = {}
            for row in curves:
                if row["setting"] == name:
                    epochs.setdefault(int(row["epoch"]), []).append(100 * float(row[column]))
            color = "black" if index == 0 else COLORS[(index - 1) % len(COLORS)]
            low, high = ([choose(values) for values in epochs.values()] for choose in (min, max))
            means = [statistics.fmean(values) for values in epochs.values()]
            axes.plot([*epochs], means, color=color, marker=MARKERS[index % len(MARKERS)], markersize=4, label=name)
            axes.fill_between([*epochs], low, high, color=color, alpha=0.12, linewidth=0)
        axes.set(xlabel="epoch", ylabel=f"{column} accuracy, validation (%)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def block(results: Path, name: str) -> str:
    """Returns the table called `name`, of the rows in a folder."""
    rows, speeds = (rows_of(results / f"policies-{name}{suffix}.csv") for suffix in ("", "-speed"))
    return table(TABLES[name], rows, speeds)
