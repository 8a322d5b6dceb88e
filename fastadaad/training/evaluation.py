"""A run's student measured: on the validation split while it trains, on the test set at its end."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from fastadaad.data import Pipeline
from fastadaad.evaluation import AttackResult, evaluate, merge, num_stages
from fastadaad.evaluation.accuracy import Progress
from fastadaad.run_config import RunConfig
from fastadaad.runtime.distributed import current_process_group
from fastadaad.runtime.progress import image_progress
from fastadaad.training.data import TrainingData


def evaluate_on_validation_split(
    model: nn.Module, config: RunConfig, data: TrainingData, *, progress: Progress = lambda part, num_images: None
) -> dict[str, float]:
    """natural_accuracy and robust_accuracy of `model`, as metrics.csv has them; empty without a validation split.

    `progress` as in evaluate.
    """
    if data.validation is None:
        return {}
    evaluation = config.evaluation
    natural, robust = _of_all_ranks(
        _evaluate(
            model,
            _share(data.validation),
            ("natural", evaluation.validation_attack),
            threat_model=evaluation.threat_model,
            seed=config.seed,
            progress=progress,
        )
    )
    return {"natural_accuracy": natural.accuracy, "robust_accuracy": robust.accuracy}


def evaluate_on_test_set(
    model: nn.Module,
    config: RunConfig,
    data: TrainingData,
    console: Console,
    title: str,
    *,
    state: Path | None = None,
) -> list[AttackResult]:
    """The attacks of `config.evaluation` on the test images of `data`, with live progress; `state` as in evaluate."""
    evaluation, test = config.evaluation, _share(data.test)
    with image_progress(console, title, num_stages(evaluation.attacks) * test.num_images) as progress:
        results = _evaluate(
            model,
            test,
            evaluation.attacks,
            threat_model=evaluation.threat_model,
            restarts=evaluation.restarts,
            seed=config.seed,
            progress=lambda part, num_images: progress.advance(num_images, part),
            state=state,
        )
    skipped = [*data.dataset.skipped.values(), *test.skipped.values()]
    notes = [
        f"image files of the data set that are left out: {len(skipped)}, the first: {first}" for first in skipped[:1]
    ]
    return _of_all_ranks([replace(result, notes=(*result.notes, *notes)) for result in results])


def _share(pipeline: Pipeline) -> Pipeline:
    """The images of this process."""
    process_group = current_process_group()
    return pipeline if process_group.size == 1 else pipeline.shard(process_group.rank, process_group.size)


def _evaluate(
    model: nn.Module, share: Pipeline, attacks: Sequence[str], *, progress: Progress, **options: Any
) -> list[AttackResult]:
    """evaluate on the images of this process; no results where there are fewer images than processes."""
    process_group = current_process_group()
    if not share.num_images and not process_group.is_first:
        return []

    def meet_after_batch(part: str, num_images: int) -> None:
        progress(part, num_images)
        process_group.progress()
        process_group.all_gather(False)

    return evaluate(model, partial(share.epoch, 0), attacks, progress=meet_after_batch, **options)


def _of_all_ranks(results: list[AttackResult]) -> list[AttackResult]:
    """Merged; a process that is done meets the others after their batches, as one is taken for lost that is silent."""
    process_group = current_process_group()
    process_group.pause()
    while not all(process_group.all_gather(True)):
        pass
    shares = [share for share in process_group.all_gather(results) if share]
    return [merge(parts) for parts in zip(*shares, strict=True)]
