"""A recipe's teacher and its students, one per architecture, method and seed: trained, attacked, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad import methods, recipes
from fastadaad.cli.comparison.cells import Cell, cell_lock, finish
from fastadaad.cli.comparison.table import plot_comparison, print_table, summarize, write_csv, write_markdown
from fastadaad.config_io import override
from fastadaad.evaluation.plots import plot_curves
from fastadaad.models import load_model
from fastadaad.run_config import RunConfig, TeacherConfig
from fastadaad.training.evaluation import evaluate_on_validation_split
from fastadaad.training.log import read_metrics


def method_names(names: Sequence[str]) -> list[str]:
    """`names`, with all methods of the table in the place of `all`."""
    return [method for name in names for method in (methods.METHODS if name == "all" else [name])]


def student_configs(
    recipe: str, overrides: Sequence[str], names: Sequence[str], students: Sequence[str], seeds: Sequence[int]
) -> list[RunConfig]:
    """One configuration per student, method and seed; no `students`: the recipe's own.

    Raises ValueError for whatever does not hold; a mistake must not surface when others have been trained.
    """
    if override(recipes.get(recipe), overrides).teacher is None:
        raise ValueError(f"recipe {recipe} has no teacher to compare with: see fastadaad recipes")
    configs = [override(recipes.get(recipe, method=name), overrides) for name in method_names(names)]
    for student in students:
        load_model(student)
    return [
        replace(config, student=replace(config.student, name=student or config.student.name), seed=seed)
        for student in students or ("",)
        for config in configs
        for seed in seeds
    ]


def comparison_cells(
    configs: Sequence[RunConfig],
    folder: Path,
    console: Console,
    *,
    from_scratch: bool = False,
    label: Callable[[RunConfig], str] = lambda config: config.method,
) -> list[Cell]:
    """The teacher's cell and one per configuration, in `folder`; all have the first configuration's teacher.

    `from_scratch` trains that teacher first; `label` is what the method's column of the table says.
    """
    config = configs[0]
    assert config.teacher is not None
    teacher = train_teacher(config, folder, console) if from_scratch else config.teacher
    return [
        Cell(replace(config, teacher=teacher), folder, label="teacher", is_teacher=True),
        *(Cell(replace(config, teacher=teacher), folder, label=label(config)) for config in configs),
    ]


def compare(
    recipe: str,
    overrides: Sequence[str],
    *,
    folder: Path,
    names: Sequence[str],
    students: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    from_scratch: bool = False,
    console: Console,
) -> list[Cell]:
    """Finish all cells, in `folder`/cells, then write results.csv, table.md, table.png and curves.png to `folder`.

    `from_scratch` trains the recipe's teacher first (recipe `<recipe>-teacher`) and uses it in place of the recipe's.
    Returns the cells, the teacher's first.
    """
    configs = student_configs(recipe, overrides, names, students, seeds)
    teacher, *rest = cells = comparison_cells(configs, folder / "cells", console, from_scratch=from_scratch)
    teacher_model, teacher_data = teacher.load()  # before any training: are its weights there, and do they fit?
    finish(cells, console)
    summaries = summarize(cells)
    write_csv(folder / "results.csv", cells)
    write_markdown(folder / "table.md", summaries)
    plot_comparison(folder / "table.png", summaries, title=f"recipe {recipe}")
    validation = evaluate_on_validation_split(teacher_model, teacher.config, teacher_data)
    plot_curves(folder / "curves.png", _runs(rest), validation, title=f"recipe {recipe}")
    print_table(console, summaries)
    return cells


def _runs(cells: Sequence[Cell]) -> dict[str, list[list[dict[str, float]]]]:
    """Rows of metrics.csv per run, by method, and by student too if there are several."""
    several = len({cell.config.student.name for cell in cells}) > 1
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for cell in cells:
        name = f"{cell.config.student.name} {cell.config.method}" if several else cell.config.method
        runs.setdefault(name, []).append(read_metrics(cell.folder))
    return runs


def train_teacher(config: RunConfig, folder: Path, console: Console) -> TeacherConfig:
    """Train the teacher of `config` by the recipe of its own, on the same device with the same data folder."""
    assert config.teacher is not None
    recipe = recipes.get(f"{config.recipe}-teacher")
    data = replace(recipe.data, root=config.data.root, download=config.data.download)
    cell = Cell(replace(recipe, data=data, device=config.device), folder, label=recipe.recipe)
    with cell_lock(cell.folder) as own:
        if not own:
            raise ValueError(f"{cell.folder} is being trained by another process: start again when it has ended")
        cell.train(console)
    return replace(config.teacher, checkpoint=str(cell.folder / "best.safetensors"))
