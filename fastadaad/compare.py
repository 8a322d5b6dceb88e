"""A recipe's teacher and one student per method and seed: trained, evaluated, in one table and one picture."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.config import ModelConfig, RunConfig
from fastadaad.config_io import override
from fastadaad.evaluation import AttackResult
from fastadaad.evaluation.plots import plot_curves
from fastadaad.evaluation.report import print_accuracies, write_results
from fastadaad.trainer import (
    Trainer,
    build_model,
    build_teacher,
    evaluate_on_test_set,
    evaluate_on_validation_split,
    resolve_device,
)
from fastadaad.training_data import training_data

Row = tuple[str, list[AttackResult]]


def compare(
    recipe: str,
    overrides: Sequence[str],
    *,
    folder: Path,
    method_names: Sequence[str],
    seeds: Sequence[int],
    from_scratch: bool,
    console: Console,
) -> list[Row]:
    """Train and evaluate; writes results.csv and curves.png to `folder`, and each run to a folder of its own in it.

    `from_scratch` trains the recipe's teacher first (recipe `<recipe>-teacher`) and uses it in place of the recipe's.
    Returns the rows of the table, the teacher's first.
    """
    config = override(recipes.get(recipe), overrides)
    if config.teacher is None:
        raise ValueError(f"recipe {recipe} has no teacher to compare with: see fastadaad recipes")
    # All of them first: a mistake in one must not surface when the others have been trained.
    students = [
        replace(override(recipes.get(recipe, method=name), overrides), seed=seed)
        for name in method_names
        for seed in seeds
    ]
    teacher = train_teacher(config, folder / "teacher", console) if from_scratch else config.teacher
    device = resolve_device(config.device)
    data = training_data(config, device)
    teacher_model = build_teacher(teacher, data, device)
    rows = [("teacher", evaluate_on_test_set(teacher_model, config, data, console, "teacher"))]
    runs: dict[str, list[Path]] = {}
    for student in students:
        row_name = f"{student.method} seed {student.seed}"
        run_folder = folder / f"{student.method}-seed{student.seed}"
        rows.append((row_name, train_and_evaluate(replace(student, teacher=teacher), run_folder, console, row_name)))
        runs.setdefault(student.method, []).append(run_folder)
    write_results(folder / "results.csv", rows)
    plot_curves(
        folder / "curves.png", runs, evaluate_on_validation_split(teacher_model, config, data), f"recipe {recipe}"
    )
    print_accuracies(console, rows)
    return rows


def train_teacher(config: RunConfig, folder: Path, console: Console) -> ModelConfig:
    """Train the teacher of `config` by the recipe of its own, on the same device with the same data folder."""
    assert config.teacher is not None
    recipe = recipes.get(f"{config.recipe}-teacher")
    data = replace(recipe.data, root=config.data.root, download=config.data.download)
    Trainer(replace(recipe, data=data, device=config.device), folder, console).train()
    return replace(config.teacher, checkpoint=str(folder / "best.safetensors"))


def train_and_evaluate(config: RunConfig, folder: Path, console: Console, title: str) -> list[AttackResult]:
    """Train, then evaluate the best epoch on the test set."""
    trainer = Trainer(config, folder, console)
    result = trainer.train()
    console.print(
        f"{title}: best epoch {result.best_epoch}, {result.images_per_s:,.0f} images/s, {result.seconds:,.0f} s"
    )
    best = ModelConfig(name=config.student.name, checkpoint=str(folder / "best.safetensors"))
    return evaluate_on_test_set(build_model(best, trainer.data, trainer.device), config, trainer.data, console, title)
