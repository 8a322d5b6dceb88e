"""Every method on CIFAR-10 at CPU scale: `python -m bench cifar10`.

Students are trained and attacked in experiments kept on disk, so that several processes can share the work, and the
rows of other students stay, so that the study can take several days. `--draw` writes the tables of README.md and
docs/results.md and the picture of the trainings.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastadaad import recipes
from fastadaad.cli.comparison.table import result_rows
from fastadaad.evaluation.plots import figure_title, plot_curves

from .pages import Row, markdown, rewritten, rows_of
from .rows import RESULTS, replace_rows
from .study import LARGER_RADIUS, Cell, curve_rows, finished, student_config, students_of

RECIPE = "cifar10-small"
STUDENTS = ("rescnn-32", "cnn-32")
ADAAD_AT_LARGER_RADIUS = "adaad at 12/255"


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the table: a method, its number of seeds, and the changes of the recipe."""

    method: str
    num_seeds: int = 2
    overrides: tuple[str, ...] = ()


LINES = {
    "pgd-at": Line(method="pgd-at", num_seeds=3),
    "pgd-at at 12/255": Line(method="pgd-at", overrides=LARGER_RADIUS),
    "trades": Line(method="trades"),
    "ard": Line(method="ard"),
    "iad": Line(method="iad"),
    "rslad": Line(method="rslad", num_seeds=3),
    "akd": Line(method="akd"),
    "adaad": Line(method="adaad", num_seeds=3),
    ADAAD_AT_LARGER_RADIUS: Line(method="adaad", num_seeds=3, overrides=LARGER_RADIUS),
    "adaiad": Line(method="adaiad", num_seeds=3),
    "adaiad at 12/255": Line(method="adaiad", num_seeds=3, overrides=LARGER_RADIUS),
    "saad": Line(method="saad"),
    "adaad+igdm": Line(method="adaad+igdm"),
}
DRAWN = ("pgd-at", "rslad", "adaad", ADAAD_AT_LARGER_RADIUS)
ROWS, CURVES = "cifar10-small.csv", "cifar10-small-curves.csv"


def cells_of(
    students: Sequence[str], lines: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Iterator[Cell]:
    """Yields the students of some lines, all of one seed together, of those seeds that a line has."""
    for seed in seeds:
        for student in students:
            for name in lines:
                line = LINES[name]
                if seed < line.num_seeds:
                    base = student_config(RECIPE, line.method, [*overrides, *line.overrides])
                    config = replace(base, seed=seed, student=replace(base.student, name=student))
                    yield Cell(columns={}, config=config, label=name)


def accuracies_of(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Returns the accuracies in %, by (student, method), attack and seed, in the order of STUDENTS and LINES."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    names = [*STUDENTS, *LINES]
    for row in sorted(rows, key=lambda row: (names.index(row["student"]), names.index(row["method"]))):
        by_attack = found.setdefault((row["student"], row["method"]), {})
        by_attack.setdefault(row["attack"], {})[row["seed"]] = 100 * float(row["accuracy"])
    return found


def table(rows: Sequence[Row], teacher_rows: Sequence[Row]) -> str:
    """Returns Markdown with a line per student and method: mean ± standard deviation over the seeds.

    The best figure of each network is bold. A figure of fewer seeds than the line has says of how many.

    Args:
        rows: Results of the students.
        teacher_rows: Results of the teacher, shown in the first line.
    """
    found = accuracies_of(rows)
    attacks = [attack for attack in recipes.TABLE_ATTACKS if any(row["attack"] == attack for row in rows)]
    best: dict[tuple[str, str], float] = {}
    for (student, _), by_attack in found.items():
        for attack, accuracies in by_attack.items():
            best[student, attack] = max(statistics.fmean(accuracies.values()), best.get((student, attack), 0.0))
    teacher = {row["attack"]: f"{100 * float(row['accuracy']):.1f}" for row in teacher_rows}
    lines = [[teacher_rows[0]["student"], "teacher", "1", *[teacher.get(attack, "") for attack in attacks]]]
    for (student, method), by_attack in found.items():
        seeds = max(map(len, by_attack.values()))
        figures = [_figure([*by_attack.get(attack, {}).values()], seeds, best[student, attack]) for attack in attacks]
        lines.append([student, f"`{method}`", str(seeds), *figures])
    return markdown(("network", "method", "seeds", *attacks), lines)


def _figure(accuracies: Sequence[float], seeds: int, best: float) -> str:
    if not accuracies:
        return ""
    mean = statistics.fmean(accuracies)
    text = f"{mean:.1f}" + (f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else "")
    text = f"**{text}**" if mean == best else text
    return text if len(accuracies) == seeds else f"{text} (of {len(accuracies)})"


def plot(path: Path, curves: Sequence[Row], student: str) -> None:
    """Draws the accuracies on the validation split over the epochs, a line per method of DRAWN.

    Args:
        path: PNG file.
        curves: Rows with student, method, seed, epoch, natural_accuracy and robust_accuracy.
        student: Network that is drawn.
    """
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in curves:
        if row["student"] == student and row["method"] in DRAWN:
            point = {name: float(row[name]) for name in ("epoch", "natural_accuracy", "robust_accuracy")}
            runs.setdefault(row["method"], {}).setdefault(row["seed"], []).append(point)
    evaluation = recipes.get(RECIPE).evaluation
    title = figure_title(
        f"students {student}", "CIFAR-10 (JPEG copy)", evaluation.threat_model, evaluation.validation_attack
    )
    plot_curves(path, {method: [*seeds.values()] for method, seeds in runs.items()}, title=title)


def draw() -> None:
    """Draws the picture and writes the tables."""
    root = RESULTS.parents[1]
    rows = rows_of(RESULTS / ROWS)
    plot(root / "docs" / "cifar10.png", rows_of(RESULTS / CURVES), STUDENTS[0])
    text = table(rows, rows_of(RESULTS / "cifar10-teacher.csv"))
    for page in (root / "README.md", root / "docs" / "results.md"):
        page.write_text(rewritten(page.read_text(), text, "cifar10"))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench cifar10", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes of all students")
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("--students", default=[*STUDENTS], help=f"default: {','.join(STUDENTS)}", **names)
    parser.add_argument("--methods", default=[*LINES], help="lines of the table; default: all", **names)
    seeds = {"type": lambda text: [int(seed) for seed in text.split(",")], "default": [0, 1, 2]}
    parser.add_argument("--seeds", help="those of them that a line has; default: 0,1,2", **seeds)
    parser.add_argument("--folder", type=Path, default=Path("runs/cifar10"), help="default: %(default)s")
    parser.add_argument("--work", action="store_true", help="share the work of another process; write no rows")
    parser.add_argument("--trained", action="store_true", help="write the rows of what is there; train nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows; default: bench/results")
    parser.add_argument("--draw", action="store_true", help="write the tables and the picture of the rows instead")
    options = parser.parse_args(argv)
    if options.draw:
        draw()
        return
    cells = cells_of(options.students, options.methods, options.seeds, options.overrides)
    students = students_of(cells, options.folder) if options.trained else finished(cells, options.folder)
    if options.work:
        return
    trained = [(cell, experiment) for cell, experiment in students if experiment.training]
    if not trained:
        parser.error(f"no student of these settings is trained in {options.folder}: leave out --trained")
    rows = [{"recipe": RECIPE} | row for row in result_rows([experiment for _, experiment in trained])]
    for name, own in ((ROWS, rows), (CURVES, [*curve_rows(trained)])):
        replace_rows(options.output / name, own, ("student", "method", "seed"))
