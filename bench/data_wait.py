"""Fraction of a training's time that is spent waiting for data, as measured by the Trainer."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.config import Engine
from fastadaad.run_config import RunConfig
from fastadaad.runtime.timing import Spread
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

EPOCHS = {"demo": 20, "fashion-mnist": 1}
"""Epochs of each recipe: some seconds of training on two cores."""
ENGINES: tuple[Engine, ...] = ("resident", "dali", "torch")


def rows(epochs: dict[str, int], rounds: int, num_workers: int, device: str) -> Iterator[dict[str, object]]:
    """Yields one row per recipe and engine; the engines take turns.

    Args:
        epochs: Number of epochs by recipe.
        rounds: Trainings of each engine.
        num_workers: Workers of the engines that have any.
        device: Device of the training.
    """
    for recipe, num_epochs in epochs.items():
        configs = {engine: short_config(recipe, num_epochs, engine, num_workers, device) for engine in ENGINES}
        runs: dict[Engine, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
        for number in range(rounds):
            for engine in ENGINES[:: (-1) ** number]:
                runs[engine].append(train(configs[engine]))
        for engine, metrics in runs.items():
            yield row(configs[engine], metrics)


def short_config(recipe: str, epochs: int, engine: Engine, num_workers: int, device: str) -> RunConfig:
    """The recipe with `epochs` epochs and the given engine, without a validation split."""
    config = recipes.get(recipe)
    data = replace(config.data, engine=engine, num_workers=num_workers, validation_size=0)
    return replace(config, data=data, optim=replace(config.optim, epochs=epochs), device=device)


def train(config: RunConfig) -> dict[str, float]:
    """Trains and returns the last row of metrics.csv."""
    with tempfile.TemporaryDirectory() as folder:
        Trainer(config, Path(folder), Console()).train()
        return read_metrics(Path(folder))[-1]


def row(config: RunConfig, metrics: list[dict[str, float]]) -> dict[str, object]:
    """Row of the CSV file for the runs of one configuration."""
    return {
        "recipe": config.recipe,
        "student": config.student.name,
        "method": config.method,
        "epochs": config.optim.epochs,
        "batch_size": config.data.batch_size,
        "engine": config.data.engine,
        "workers": 0 if config.data.engine == "resident" else config.data.num_workers,
        **Spread.of([run["data_wait"] for run in metrics]).columns("waiting_share_{}"),
        **Spread.of([run["images_per_s"] for run in metrics]).columns("images_per_s_{}"),
        **Spread.of([run["seconds"] for run in metrics]).columns("{}_s"),
        "n": len(metrics),
    }
