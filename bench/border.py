"""AdaAD against PGD-AT by number of training images and size of the student: `python -m bench border`.

Every student sees about as many images: the fewer there are, the more epochs. `--draw` makes the picture.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from fastadaad import recipes
from fastadaad.config_io import override
from fastadaad.evaluation.plots import COLORS, MARKERS, new_figure
from fastadaad.run_config import ModelConfig

from .pages import Row, rows_of
from .rows import RESULTS, replace_rows
from .study import Cell, accuracy_rows, finished

RECIPE = "cifar10-small"
NUM_IMAGES = (500, 2000, 8000, 50000)
STUDENTS = ("rescnn-8", "rescnn-16", "rescnn-32")
METHODS = ("pgd-at", "adaad")
IMAGES_SEEN = 30_000  # as in the recipe
EVALUATIONS = 6  # on the validation split of each training, to choose the best epoch
ATTACKS = ("natural", "pgd20", "autoattack")
PANELS = ("natural", "autoattack")


def epochs_of(num_images: int) -> int:
    """Returns the epochs of a training on some images."""
    return max(1, round(IMAGES_SEEN / num_images))


def cells_of(
    num_images: Sequence[int], students: Sequence[str], seeds: Sequence[int], overrides: Sequence[str] = ()
) -> Iterator[Cell]:
    """Yields the students of the grid, both methods of a point together; `overrides` come last."""
    for seed, count, student, method in product(seeds, num_images, students, METHODS):
        config, epochs = recipes.get(RECIPE, method=method), epochs_of(count)
        config = replace(
            config,
            seed=seed,
            student=ModelConfig(name=student, normalize=True),
            optim=replace(config.optim, epochs=epochs),
            data=replace(config.data, num_samples=count),
            evaluation=replace(config.evaluation, attacks=ATTACKS, every_epochs=max(1, epochs // EVALUATIONS)),
        )
        yield Cell(columns={"train_images": count}, config=override(config, [*overrides]))


def gains(rows: Sequence[Row], attack: str) -> dict[str, dict[int, float]]:
    """Returns the accuracy of AdaAD minus that of PGD-AT in points, by student and training images; mean over seeds."""
    accuracies = {
        (row["student"], int(row["train_images"]), row["seed"], row["method"]): 100 * float(row[attack]) for row in rows
    }
    differences: dict[str, dict[int, list[float]]] = {}
    for (student, count, seed, method), accuracy in accuracies.items():
        if method == "adaad" and (student, count, seed, "pgd-at") in accuracies:
            by_count = differences.setdefault(student, {}).setdefault(count, [])
            by_count.append(accuracy - accuracies[student, count, seed, "pgd-at"])
    return {
        student: {count: statistics.fmean(by_count[count]) for count in sorted(by_count)}
        for student, by_count in differences.items()
    }


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Draws the gain of AdaAD over PGD-AT against the training images: a panel per attack, a line per student."""
    figure = new_figure(9, 3.6)
    for axes, attack in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for index, (student, by_count) in enumerate(gains(rows, attack).items()):
            axes.plot([*by_count], [*by_count.values()], color=COLORS[index], marker=MARKERS[index], label=student)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xscale="log", xlabel="training images", ylabel=f"AdaAD - PGD-AT, {attack} (points)")
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench border", description=__doc__)
    numbers = {"type": lambda text: [int(word) for word in text.split(",")]}
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes of all students")
    parser.add_argument("--train-images", default=[*NUM_IMAGES], help="default: 500,2000,8000,50000", **numbers)
    parser.add_argument("--students", type=lambda text: text.split(","), default=STUDENTS, help="default: three sizes")
    parser.add_argument("--seeds", default=[0], help="default: 0", **numbers)
    parser.add_argument("--folder", type=Path, default=Path("runs/border"), help="default: %(default)s")
    parser.add_argument("--work", action="store_true", help="share the work of another process; write no rows")
    parser.add_argument("--output", type=Path, default=RESULTS / "border.csv", help="default: %(default)s")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw the picture of the rows instead")
    options = parser.parse_args(argv)
    if options.draw:
        plot(options.draw, rows_of(options.output))
        return
    cells = cells_of(options.train_images, options.students, options.seeds, options.overrides)
    rows = [*accuracy_rows(finished(cells, options.folder))]
    if not options.work:
        replace_rows(options.output, rows, ("student", "method", "seed", "train_images"))
