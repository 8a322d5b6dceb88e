"""Files that a run logs to: config.json, metrics.csv (one row per epoch), TensorBoard events, and trackers."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fastadaad.run_config import RunConfig
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.json_files import reason
from fastadaad.runtime.progress import ImageProgress
from fastadaad.runtime.retrying_files import RetryingFiles
from fastadaad.runtime.text import InputError
from fastadaad.runtime.untrusted_files import TEXT_BYTES, check_size
from fastadaad.training.distiller import Distiller
from fastadaad.training.state import TrainingState
from fastadaad.training.trackers import Trackers

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
    "data_wait",  # fraction of the seconds
    "skipped_updates",  # so far, with on_nonfinite=skip
    "gradient_agreement",  # fraction of pixel gradients with the networks' own sign, in spot checks
    "policy_kl_share",  # share of the exact search's kl that a teacher policy reached in its last probe
    # Error of a teacher policy other than exact, see TeacherError.
    "teacher_logit_error",
    "teacher_kl_error",
    "teacher_top_class_differs",
    "query_interval",
)


def epoch_row(
    state: TrainingState, distiller: Distiller, progress: ImageProgress, validation: Mapping[str, float]
) -> dict[str, float | None]:
    """Returns the METRICS of the epoch that has just been trained. Waits for the device.

    Args:
        state: State of the run.
        distiller: Training step of the run.
        progress: Speed and time of the run.
        validation: Accuracies on the validation split; empty if the epoch was not evaluated.
    """
    error = distiller.read_teacher_error() or distiller.teacher_error
    return {
        "epoch": state.epoch,
        "step": state.step,
        "learning_rate": state.optimizer.param_groups[0]["lr"],
        "train_loss": state.mean_loss(),
        "natural_accuracy": validation.get("natural_accuracy"),
        "robust_accuracy": validation.get("robust_accuracy"),
        "images_per_s": progress.images_per_s,
        "seconds": progress.seconds,
        "data_wait": progress.waited_fraction,
        "skipped_updates": distiller.read_skipped() if distiller.on_nonfinite == "skip" else None,
        "gradient_agreement": distiller.read_gradient_agreement(),
        "policy_kl_share": distiller.policy_share,
        "teacher_logit_error": None if error is None else error.logit_error,
        "teacher_kl_error": None if error is None else error.kl_error,
        "teacher_top_class_differs": None if error is None else error.top_class_differs,
        "query_interval": None if error is None else error.query_interval,
    }


class RunLog:
    """config.json and the metrics of all epochs so far; a context manager that closes its files.

    Args:
        folder: Folder of the run.
        config: Configuration of the run.
        files: Writer of the files.
        step: Number of optimiser steps so far. Later TensorBoard events, of a continuation that was lost, are hidden.
    """

    def __init__(self, folder: Path, config: RunConfig, files: RetryingFiles, step: int) -> None:
        self._path, self._files = folder / "metrics.csv", files
        # First, so that a client that is missing leaves no folder.
        self._trackers = Trackers(config.trackers if files.enabled else (), folder, config)
        if files.enabled:
            write_atomically(folder / "config.json", json.dumps(asdict(config), indent=2).encode())
            self._tensorboard = SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exception: object) -> None:
        self._files.attempt("tensorboard", lambda: self._tensorboard.close())
        self._trackers.close()

    def write(self, rows: Sequence[Row]) -> None:
        """Writes the rows of all epochs so far; None, a metric that was not measured, stays empty."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, METRICS)
        writer.writeheader()
        writer.writerows(rows)
        # The whole file at once: a run that is killed and resumed has each epoch once.
        self._files.write(self._path, text.getvalue().encode())

    def show(self, row: Row) -> None:
        """Adds the row of one epoch to TensorBoard and to the trackers."""
        self._files.attempt("tensorboard", lambda: self._show(row))
        self._trackers.log(row)

    def _show(self, row: Row) -> None:
        for name, value in row.items():
            if value is not None and name not in ("epoch", "step"):
                self._tensorboard.add_scalar(name, value, row["step"])
        self._tensorboard.flush()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Reads the rows of a run's metrics.csv; a metric that was not measured is missing in its row.

    Raises:
        ValueError: The file cannot be read, or its rows are not those of epochs.
    """
    path = folder / "metrics.csv"
    try:
        check_size(path, TEXT_BYTES)
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8"), newline=""), strict=True))
        return [_numbers(row) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        remedy = "resume the run, which writes it again"
        raise InputError(f"{path} cannot be read ({reason(error)}): {remedy}") from error


def _numbers(row: Mapping[Any, Any]) -> dict[str, float]:
    """Returns the numbers of a row. Raises ValueError for a row that is not one of METRICS."""
    if not row.keys() <= set(METRICS) or not (row.get("epoch") and row.get("step")):
        raise ValueError("its columns are not those of a run")
    return {name: float(text) for name, text in row.items() if text}
