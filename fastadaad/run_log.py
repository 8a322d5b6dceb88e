"""What a run leaves behind: config.json, metrics.csv (one row per epoch), TensorBoard events, precision.json."""

import csv
import json
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fastadaad.checkpoint import write_atomically
from fastadaad.config import RunConfig

METRICS = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "natural_accuracy",
    "robust_accuracy",
    "images_per_s",
    "seconds",
    "data_wait",  # share of the seconds
    # Of a teacher policy other than exact, see TeacherError.
    "teacher_logit_error",
    "teacher_kl_error",
    "teacher_top_class_differs",
    "asking_interval",
)


class RunLog:
    """Appends the metrics of each epoch to the run folder; a context manager that closes its files."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.json", json.dumps(asdict(config), indent=2).encode())
        self._file = open(folder / "metrics.csv", "w", newline="")  # noqa: SIM115 - closed in __exit__
        self._writer = csv.DictWriter(self._file, METRICS)
        self._writer.writeheader()
        self._tensorboard = SummaryWriter(folder / "tensorboard")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
        self._tensorboard.close()

    def write(self, metrics: dict[str, float | None]) -> None:
        """Add one epoch's row; a metric that was not measured is None and stays empty."""
        self._writer.writerow(metrics)
        self._file.flush()
        for name, value in metrics.items():
            if value is not None and name not in ("epoch", "step"):
                self._tensorboard.add_scalar(name, value, metrics["step"])


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; what was not measured is absent from its row."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def write_precision(folder: Path, moment: str, shares: dict[str, float]) -> None:
    """Add the shares of a PrecisionReport to the run's precision.json, under the moment in which they were measured."""
    path = folder / "precision.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(known | {moment: shares}, indent=2).encode())
