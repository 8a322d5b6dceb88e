"""Comparison of a recipe's teacher and its students, one per architecture, method and seed, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad import methods, recipes
from fastadaad.cli.comparison.experiment import Experiment, experiment_lock, finish
from fastadaad.cli.comparison.table import plot_comparison, print_table, summarize, write_csv, write_markdown
from fastadaad.config_io import override
from fastadaad.evaluation.plots import figure_title, plot_curves
from fastadaad.models import load_model
from fastadaad.run_config import RunConfig, TeacherConfig
from fastadaad.training.build import resolve_device
from fastadaad.training.evaluation import evaluate_on_validation_split
from fastadaad.training.log import read_metrics


def method_names(names: Sequence[str]) -> list[str]:
    """Returns the methods by name; `all` stands for all methods of the table."""
    return [method for name in names for method in (methods.METHODS if name == "all" else [name])]


def student_configs(
    recipe: str, overrides: Sequence[str], names: Sequence[str], students: Sequence[str], seeds: Sequence[int]
) -> list[RunConfig]:
    """Returns one configuration per student, method and seed. Default of `students`: the recipe's student.

    Raises:
        ValueError: Unknown method or network, or a wrong override.
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


def comparison_experiments(
    configs: Sequence[RunConfig],
    folder: Path,
    console: Console,
    *,
    from_scratch: bool = False,
    label: Callable[[RunConfig], str] = lambda config: config.method,
) -> list[Experiment]:
    """Returns the teacher's experiment and one per configuration, all with the first configuration's teacher.

    Args:
        configs: Configurations of the students.
        folder: Folder of the experiments.
        console: Console for the teacher's training.
        from_scratch: Train that teacher first.
        label: Text in the method's column of the table, for each configuration.
    """
    config = configs[0]
    assert config.teacher is not None
    teacher = train_teacher(config, folder, console) if from_scratch else config.teacher
    return [
        Experiment(replace(config, teacher=teacher), folder, label="teacher", is_teacher=True),
        *(Experiment(replace(config, teacher=teacher), folder, label=label(config)) for config in configs),
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
) -> list[Experiment]:
    """Finishes all experiments, and writes results.csv, table.md, table.png and curves.png to `folder`.

    Args:
        recipe: Name of the recipe.
        overrides: Settings that differ from the recipe, as section.field=value.
        folder: Folder of the results; the experiments are in its subfolder `experiments`.
        names: Names of the methods, or `all`.
        students: Names of the student networks. Default: the recipe's student.
        seeds: Seeds of the runs.
        from_scratch: Train the recipe's teacher first, by the recipe `<recipe>-teacher`.
        console: Console for messages, progress and the table.

    Returns:
        The experiments, the teacher's first.

    Raises:
        ValueError: Unknown method, wrong override, or a teacher without weights.
    """
    configs = student_configs(recipe, overrides, names, students, seeds)
    teacher, *rest = experiments = comparison_experiments(
        configs, folder / "experiments", console, from_scratch=from_scratch
    )
    teacher_model, teacher_data = teacher.load()  # raises before any training if weights are missing or do not fit
    finish(experiments, console)
    summaries = summarize(experiments)
    write_csv(folder / "results.csv", experiments)
    write_markdown(folder / "table.md", summaries)
    config = configs[0]
    evaluation = config.evaluation
    title = figure_title(recipe, config.data.name, evaluation.threat_model)
    plot_comparison(folder / "table.png", summaries, title=title)
    with teacher_data.fitting_threads(resolve_device(config.device)):
        validation = evaluate_on_validation_split(teacher_model, teacher.config, teacher_data)
    title = figure_title(recipe, config.data.name, evaluation.threat_model, evaluation.validation_attack)
    plot_curves(folder / "curves.png", _runs(rest), validation, title=title)
    print_table(console, summaries)
    return experiments


def _runs(experiments: Sequence[Experiment]) -> dict[str, list[list[dict[str, float]]]]:
    """Rows of metrics.csv per run, by method, and by student too if there are several."""
    several = len({experiment.config.student.name for experiment in experiments}) > 1
    runs: dict[str, list[list[dict[str, float]]]] = {}
    for experiment in experiments:
        name = f"{experiment.config.student.name} {experiment.config.method}" if several else experiment.config.method
        runs.setdefault(name, []).append(read_metrics(experiment.folder))
    return runs


def train_teacher(config: RunConfig, folder: Path, console: Console) -> TeacherConfig:
    """Trains the teacher of `config` by its own recipe, on the same device with the same data folder."""
    assert config.teacher is not None
    recipe = recipes.get(f"{config.recipe}-teacher")
    data = replace(recipe.data, root=config.data.root, download=config.data.download)
    experiment = Experiment(replace(recipe, data=data, device=config.device), folder, label=recipe.recipe)
    with experiment_lock(experiment.folder) as own:
        if not own:
            raise ValueError(f"{experiment.folder} is being trained by another process: start again when it has ended")
        experiment.train(console)
    return replace(config.teacher, checkpoint=str(experiment.folder / "best.safetensors"))
