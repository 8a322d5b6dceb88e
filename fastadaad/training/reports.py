"""Reports of a run besides its metrics: the effect of low precision, skipped images, and the closing messages."""

import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fastadaad.inner import precision_report
from fastadaad.run_config import RunConfig
from fastadaad.runtime.device_memory import peak_memory
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.json_files import JsonError, read_json
from fastadaad.runtime.progress import ImageProgress
from fastadaad.runtime.retrying_files import RetryingFiles
from fastadaad.training.data import TrainingData
from fastadaad.training.distiller import Distiller

log = logging.getLogger(__name__)

# Fraction of the run's time above which waiting for data is reported.
REPORTED_DATA_WAIT = 0.05


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Folder of a finished run, the epoch of its best.safetensors, and its speed."""

    folder: Path
    best_epoch: int
    best_robust_accuracy: float
    images_per_s: float
    seconds: float

    def line(self, title: str) -> str:
        """One line for the console."""
        return f"{title}: best epoch {self.best_epoch}, {self.images_per_s:,.0f} images/s, {self.seconds:,.0f} s"


def report_precision(
    moment: str, config: RunConfig, data: TrainingData, distiller: Distiller, folder: Path, files: RetryingFiles
) -> None:
    """Measures low precision's gradient signs on the first batch, logs them and adds them to precision.json.

    Args:
        moment: Name of the measurement, start or end. Nothing happens if both networks are in fp32.
        config: Configuration of the run.
        data: Data of the run.
        distiller: Training step, whose networks are measured.
        folder: Folder of the run.
        files: Writer of the file.
    """
    precision = distiller.precision
    if precision_report.is_fp32(precision):
        return
    x_natural, labels = next(data.train.epoch(0))
    first = slice(config.optim.micro_batch)
    report = precision_report.measure(distiller.maximizer, x_natural[first], labels[first], seed=config.seed)
    log.info(f"student in {precision.student}, teacher in {precision.teacher}, at the {moment}: {report}")
    path = folder / "precision.json"
    try:
        known = read_json(path, dict[str, Any], "it is written anew") if path.exists() else {}
    except JsonError as error:  # it ends no training
        log.warning(str(error))
        known = {}
    files.write(path, json.dumps(known | {moment: asdict(report)}, indent=2).encode())


def report_skipped_images(data: TrainingData, folder: Path, files: RetryingFiles, process_group: ProcessGroup) -> None:
    """Writes skipped_images.txt and logs the number of image files that any rank skipped, if there are any."""
    by_rank = process_group.all_gather(data.skipped)
    skipped = {path: why for files_of_rank in by_rank for path, why in files_of_rank.items()}
    if skipped:
        path = folder / "skipped_images.txt"
        files.write(path, "".join(f"{why}\n" for why in skipped.values()).encode())
        log.info(f"image files that could not be decoded and were skipped: {len(skipped)}, see {path}")


def closing_lines(distiller: Distiller, progress: ImageProgress, device: torch.device) -> Iterator[str]:
    """Yields the messages at the end of a run: updates, teacher policy, waiting for data, memory."""
    if num_skipped := distiller.read_skipped():
        yield f"updates skipped, as NaN or inf was in their loss or gradients: {num_skipped}"
    if distiller.maximizer.teacher_policy.kind != "exact":
        yield _policy_line(distiller)
    if progress.waited_fraction > REPORTED_DATA_WAIT:
        yield (
            f"{progress.waited_fraction:.0%} of the time was spent waiting for data: raise data.num_workers, or run "
            "fastadaad pack once and train from what it writes"
        )
    if memory := peak_memory(device):
        yield f"peak memory: {memory}"


def _policy_line(distiller: Distiller) -> str:
    maximizer, error = distiller.maximizer, distiller.teacher_error
    known = "its error is unknown: the outer loss does not evaluate the teacher at x_adv"
    if error is not None:
        known = f"kl off by {error.kl_error:.1%}, another top class in {error.top_class_differs:.1%} of the images"
    return f"teacher policy {maximizer.teacher_policy}: queried every {maximizer.query_interval} steps, {known}"
