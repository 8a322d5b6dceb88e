"""Students of a study: trained and attacked in experiments kept on disk, so that several processes share the work."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.cli.comparison.experiment import Experiment, finish
from fastadaad.config_io import override
from fastadaad.run_config import RunConfig

from .pages import rows_of

LARGER_RADIUS = ("inner.threat_model.epsilon=12/255", "inner.step_size=3/255")


def student_config(recipe: str, method: str, overrides: Sequence[str]) -> RunConfig:
    """Returns the configuration of a student; eager if it is in train mode in the search, which cannot be compiled."""
    config = recipes.get(recipe, method=method)
    return override(config, [*overrides, *([] if config.inner.student_eval else ["mode=eager"])])


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One student of a study."""

    columns: dict[str, object]
    """Columns of its rows that say where it stands in the study."""
    config: RunConfig
    label: str = ""
    """Name of its method in the rows, if the settings differ from those of the method's other students."""

    @property
    def name(self) -> str:
        return self.label or self.config.method


Students = Sequence[tuple[Cell, Experiment]]


def students_of(cells: Iterable[Cell], folder: Path) -> Students:
    """Returns each student with its experiment in a folder."""
    return [(cell, Experiment(cell.config, folder, label=cell.name)) for cell in cells]


def finished(cells: Iterable[Cell], folder: Path) -> Students:
    """Trains and attacks the students that are not finished.

    Args:
        cells: The students.
        folder: Folder of their experiments.
    """
    students = students_of(cells, folder)
    finish([experiment for _, experiment in students], Console())
    return students


def accuracy_rows(students: Students) -> Iterator[dict[str, object]]:
    """Yields a row per student with a column per attack: accuracy on the test images."""
    for cell, experiment in students:
        results = experiment.results
        accuracies = {result.attack: round(result.accuracy, 4) for result in results}
        yield _columns(cell) | accuracies | {"num_images": results[0].num_images}


def validation_rows(students: Students) -> Iterator[dict[str, object]]:
    """Yields a row per student: accuracies on the validation split at its best epoch and at its last one."""
    for cell, experiment in students:
        epochs = {
            int(row["epoch"]): row for row in rows_of(experiment.folder / "metrics.csv") if row["robust_accuracy"]
        }
        assert experiment.training is not None
        best, last = experiment.training.best_epoch, max(epochs)
        accuracies = {
            f"{name}_{when}": round(float(epochs[epoch][f"{name}_accuracy"]), 4)
            for when, epoch in (("best", best), ("last", last))
            for name in ("natural", "robust")
        }
        yield _columns(cell) | {"best_epoch": best} | accuracies


def curve_rows(students: Students) -> Iterator[dict[str, object]]:
    """Yields a row per student and evaluated epoch: accuracies on the validation split."""
    for cell, experiment in students:
        for row in rows_of(experiment.folder / "metrics.csv"):
            if row["robust_accuracy"]:
                accuracies = {name: row[name] for name in ("natural_accuracy", "robust_accuracy")}
                yield _columns(cell) | {"epoch": row["epoch"]} | accuracies


def _columns(cell: Cell) -> dict[str, object]:
    config = cell.config
    fixed = {"recipe": config.recipe, "student": config.student.name, "method": cell.name, "seed": config.seed}
    return fixed | {"epochs": config.optim.epochs} | cell.columns
