"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, each through its own client if it is installed.

A tracker gets the settings of a run once, and the metrics of each epoch. It is a copy for its users: a run whose
tracker fails warns once and goes on without it.
"""

import hashlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from fastadaad.run_config import RunConfig

log = logging.getLogger(__name__)

PROJECT = "fastadaad"
MAX_PARAM = 500  # characters of a setting that MLflow stores


class Tracker(Protocol):
    """Receiver of a run's metrics."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores the metrics of an epoch that ended after `step` optimiser steps."""

    def close(self) -> None:
        """Ends the run."""


class WandbTracker:
    """Run of Weights & Biases, named as the run's folder; its local files are there too.

    The id has the folder's path, so that a resumed run goes on and one in another folder of this name does not.
    """

    def __init__(self, client: Any, folder: Path, config: RunConfig) -> None:
        path = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
        self._run = client.init(
            project=PROJECT,
            name=folder.name,
            id=f"{folder.name}-{path[:8]}",
            resume="allow",
            dir=str(folder),
            config=asdict(config),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class MlflowTracker:
    """Run of MLflow at its tracking URI, named as the run's folder; a continuation is a run of its own."""

    def __init__(self, client: Any, folder: Path, config: RunConfig) -> None:
        self._client = client
        client.set_experiment(PROJECT)
        client.start_run(run_name=folder.name)
        client.log_params({name: str(value)[:MAX_PARAM] for name, value in _flat(asdict(config)).items()})

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores the metrics."""
        self._client.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._client.end_run()


TRACKERS: dict[str, Callable[[Any, Path, RunConfig], Tracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the settings by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


class Trackers:
    """The trackers of a run.

    Args:
        names: Keys of TRACKERS.
        folder: Folder of the run.
        config: Configuration of the run.

    Raises:
        ValueError: A tracker's client is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: RunConfig) -> None:
        clients = {name: _client(name) for name in names}
        self._trackers: dict[str, Tracker] = {}
        for name, client in clients.items():
            try:
                self._trackers[name] = TRACKERS[name](client, folder, config)
            except Exception as error:  # of any kind: a server that does not answer, a key that is missing
                self._drop(name, error)

    def log(self, row: Mapping[str, float | None]) -> None:
        """Passes on the metrics of an epoch that were measured."""
        metrics = {name: value for name, value in row.items() if value is not None and name not in ("epoch", "step")}
        step = int(row["step"] or 0)
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(metrics, step)
            except Exception as error:
                self._drop(name, error)

    def close(self) -> None:
        """Ends the runs."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.close()
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._trackers.pop(name, None)
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning(f"{name} failed ({reason}): the training goes on without it; metrics.csv has all epochs")


def _client(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"trackers has {name}, which is not installed: pip install 'fastadaad[{name}]'") from error
