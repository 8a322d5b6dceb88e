"""What a run leaves behind: config.json, metrics.csv (one row per epoch), TensorBoard events, precision.json."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from fastadaad.run_config import RunConfig
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.patient_files import PatientFiles

Row = Mapping[str, float | None]

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
    "skipped_updates",  # so far, with on_nonfinite=skip
    # Of a teacher policy other than exact, see TeacherError.
    "teacher_logit_error",
    "teacher_kl_error",
    "teacher_top_class_differs",
    "query_interval",
)


class RunLog:
    """config.json, and the metrics of all epochs so far; a context manager that closes its files.

    `step`: of the run so far; what an earlier, lost continuation wrote to TensorBoard after it is hidden.
    """

    def __init__(self, folder: Path, config: RunConfig, files: PatientFiles, step: int) -> None:
        self._path, self._files = folder / "metrics.csv", files
        if files.enabled:
            write_atomically(folder / "config.json", json.dumps(asdict(config), indent=2).encode())
            self._tensorboard = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.attempt("tensorboard", lambda: self._tensorboard.close())

    def write(self, rows: Sequence[Row]) -> None:
        """Write the rows of all epochs so far; a metric that was not measured is None and stays empty."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, METRICS)
        writer.writeheader()
        writer.writerows(rows)
        # In one piece: a run that is killed and goes on has each epoch once.
        self._files.write(self._path, text.getvalue().encode())

    def show(self, row: Row) -> None:
        """Add one epoch's row to TensorBoard."""
        self._files.attempt("tensorboard", lambda: self._show(row))

    def _show(self, row: Row) -> None:
        for name, value in row.items():
            if value is not None and name not in ("epoch", "step"):
                self._tensorboard.add_scalar(name, value, row["step"])
        self._tensorboard.flush()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv; what was not measured is absent from its row."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def precision_json(path: Path, moment: str, shares: dict[str, float]) -> bytes:
    """The content of the run's precision.json at `path`, with the shares of a PrecisionReport under their moment."""
    known = json.loads(path.read_text()) if path.exists() else {}
    return json.dumps(known | {moment: shares}, indent=2).encode()
