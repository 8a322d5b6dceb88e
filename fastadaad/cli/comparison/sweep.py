"""AdaAD students trained at growing radii and measured at one: the trade of natural against robust accuracy."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad.cli.comparison.cells import Cell, finish
from fastadaad.cli.comparison.compare import comparison_cells, student_configs
from fastadaad.cli.comparison.table import accuracy_series, print_table, summarize, write_csv, write_markdown
from fastadaad.evaluation.plots import plot_against_epsilon
from fastadaad.run_config import RunConfig


def at_epsilon(config: RunConfig, epsilon: float) -> RunConfig:
    """`config` trained at radius `epsilon`, with its step size in proportion; the evaluation stays as it is."""
    inner = config.inner
    if epsilon == inner.threat_model.epsilon:
        return config  # not even rounded: it is the cell that a comparison has
    share = inner.step_size / inner.threat_model.epsilon
    threat_model = replace(inner.threat_model, epsilon=epsilon)
    return replace(config, inner=replace(inner, threat_model=threat_model, step_size=share * epsilon))


def _method_at_epsilon(config: RunConfig) -> str:
    return f"{config.method} at {config.inner.threat_model.epsilon:g}"


def sweep_epsilon(
    recipe: str,
    overrides: Sequence[str],
    epsilons: Sequence[float],
    *,
    folder: Path,
    method: str = "adaad",
    seeds: Sequence[int] = (0,),
    console: Console,
) -> list[Cell]:
    """Finish a cell per radius and seed, in `folder`/cells; write results.csv, table.md and epsilon.png to `folder`.

    Returns the cells, the teacher's first.
    """
    configs = student_configs(recipe, overrides, [method], [], seeds)
    if configs[0].inner.threat_model.epsilon == 0:
        raise ValueError("inner.threat_model.epsilon is 0: the step size cannot be scaled from it")
    configs = [at_epsilon(config, epsilon) for epsilon in epsilons for config in configs]
    cells = comparison_cells(configs, folder / "cells", console, label=_method_at_epsilon)
    cells[0].load()  # before any training: are the teacher's weights there, and do they fit?
    finish(cells, console)
    summaries = summarize(cells)
    write_csv(folder / "results.csv", cells)
    write_markdown(folder / "table.md", summaries)
    plot_against_epsilon(
        folder / "epsilon.png",
        epsilons,
        accuracy_series(summaries[1:]),
        configs[0].evaluation.threat_model.epsilon,
        title=f"recipe {recipe}, {method}",
    )
    print_table(console, summaries)
    return cells
