"""AdaAD students trained at growing radii and evaluated at one: the trade-off of natural and robust accuracy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad.cli.comparison.compare import comparison_experiments, student_configs
from fastadaad.cli.comparison.experiment import Experiment, finish
from fastadaad.cli.comparison.table import accuracy_series, print_table, summarize, write_csv, write_markdown
from fastadaad.evaluation.plots import figure_title, plot_against_epsilon
from fastadaad.run_config import RunConfig
from fastadaad.runtime.text import pixels_text


def at_epsilon(config: RunConfig, epsilon: float) -> RunConfig:
    """Returns `config` with training radius `epsilon` and a proportional step size; the evaluation does not change."""
    inner = config.inner
    if epsilon == inner.threat_model.epsilon:
        return config  # without rounding: the experiment is the same as in a comparison
    ratio = inner.step_size / inner.threat_model.epsilon
    threat_model = replace(inner.threat_model, epsilon=epsilon)
    return replace(config, inner=replace(inner, threat_model=threat_model, step_size=ratio * epsilon))


def _method_at_epsilon(config: RunConfig) -> str:
    return f"{config.method} at {pixels_text(config.inner.threat_model.epsilon)}"


def sweep_epsilon(
    recipe: str,
    overrides: Sequence[str],
    epsilons: Sequence[float],
    *,
    folder: Path,
    method: str = "adaad",
    seeds: Sequence[int] = (0,),
    console: Console,
) -> list[Experiment]:
    """Finishes one experiment per radius and seed, and writes results.csv, table.md and epsilon.png to `folder`.

    Args:
        recipe: Name of the recipe.
        overrides: Settings that differ from the recipe, as section.field=value.
        epsilons: Training radii in pixel units.
        folder: Folder of the results; the experiments are in its subfolder `experiments`.
        method: Method of all students.
        seeds: Seeds of the runs.
        console: Console for messages, progress and the table.

    Returns:
        The experiments, the teacher's first.

    Raises:
        ValueError: The recipe's radius is 0, or an override is wrong.
    """
    configs = student_configs(recipe, overrides, [method], [], seeds)
    if configs[0].inner.threat_model.epsilon == 0:
        raise ValueError("inner.threat_model.epsilon is 0: the step size cannot be scaled from it")
    configs = [at_epsilon(config, epsilon) for epsilon in epsilons for config in configs]
    experiments = comparison_experiments(configs, folder / "experiments", console, label=_method_at_epsilon)
    experiments[0].load()  # raises before any training if weights are missing or do not fit
    finish(experiments, console)
    summaries = summarize(experiments)
    write_csv(folder / "results.csv", experiments)
    write_markdown(folder / "table.md", summaries)
    plot_against_epsilon(
        folder / "epsilon.png",
        epsilons,
        accuracy_series(summaries[1:]),
        configs[0].evaluation.threat_model.epsilon,
        title=figure_title(f"{recipe}, {method}", configs[0].data.name, configs[0].evaluation.threat_model),
    )
    print_table(console, summaries)
    return experiments
