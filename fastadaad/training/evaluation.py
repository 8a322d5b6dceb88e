"""Evaluation of a run's student: on the validation split during the training, on the test set at its end."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from fastadaad.data import Pipeline, make_pipeline
from fastadaad.data.corruptions import Corruptions
from fastadaad.evaluation import AttackResult, evaluate, merge, num_stages
from fastadaad.evaluation.accuracy import Progress
from fastadaad.run_config import RunConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.progress import ImageProgress, image_progress
from fastadaad.training.data import TrainingData


def evaluate_on_validation_split(
    model: nn.Module,
    config: RunConfig,
    data: TrainingData,
    *,
    process_group: ProcessGroup | None = None,
    progress: Progress = lambda stage, num_images: None,
) -> dict[str, float]:
    """Evaluates `model` on the validation split.

    Args:
        model: Network to evaluate.
        config: Configuration of the run, which names the attack.
        data: Data of the run.
        process_group: Ranks that evaluate together, each on its shard. Default: this process alone.
        progress: Function of (stage, num_images) that is called after each batch, as in evaluate.

    Returns:
        natural_accuracy and robust_accuracy as metrics.csv has them; empty without a validation split.
    """
    if data.validation is None:
        return {}
    evaluation, group = config.evaluation, process_group or ProcessGroup()
    results = _evaluate(
        model,
        _shard(data.validation, group),
        ("natural", evaluation.validation_attack),
        group,
        threat_model=evaluation.threat_model,
        seed=config.seed,
        mode="eager",  # short beside the training of an epoch
        layout=config.layout,
        fold=config.fold,
        progress=progress,
    )
    natural, robust = _merged_over_ranks(results, group)
    return {"natural_accuracy": natural.accuracy, "robust_accuracy": robust.accuracy}


def evaluate_on_test_set(
    model: nn.Module,
    config: RunConfig,
    data: TrainingData,
    console: Console,
    title: str,
    *,
    process_group: ProcessGroup | None = None,
    state: Path | None = None,
    surrogate: nn.Module | None = None,
) -> list[AttackResult]:
    """Runs the attacks of `config.evaluation` on the test images of `data`, with a progress bar.

    Args:
        model: Network to evaluate.
        config: Configuration of the run.
        data: Data of the run.
        console: Console of the progress bar.
        title: Text beside the bar.
        process_group: Ranks that evaluate together, each on its shard. Default: this process alone.
        state: Folder in which an interrupted evaluation resumes, as in evaluate. Default: none.
        surrogate: Network whose adversarial images are tried, as in evaluate. Default: `model` itself.

    Returns:
        One result per attack, merged over the ranks.
    """
    group = process_group or ProcessGroup()
    evaluation, test = config.evaluation, _shard(data.test, group)
    with image_progress(console, title, num_stages(evaluation.attacks) * test.num_images) as progress:
        results = _evaluate(
            model,
            test,
            evaluation.attacks,
            group,
            threat_model=evaluation.threat_model,
            restarts=evaluation.restarts,
            seed=config.seed,
            mode=evaluation.mode,
            precision=evaluation.precision,
            layout=config.layout,
            fold=config.fold,
            progress=lambda stage, num_images: progress.advance(num_images, stage),
            state=state,
            surrogate=surrogate,
        )
    skipped = [*data.dataset.skipped.values(), *test.skipped.values()]
    notes = [
        f"image files of the data set that are left out: {len(skipped)}, the first: {first}" for first in skipped[:1]
    ]
    return _merged_over_ranks([replace(result, notes=(*result.notes, *notes)) for result in results], group)


def evaluate_on_corruptions(
    model: nn.Module,
    config: RunConfig,
    data: TrainingData,
    console: Console,
    title: str,
    *,
    corruptions: Corruptions,
    process_group: ProcessGroup | None = None,
) -> list[AttackResult]:
    """Evaluates the accuracy on the corrupted test images, without an attack, with a progress bar.

    Args:
        model: Network to evaluate.
        config: Configuration of the run.
        data: Data of the run; the images and the shard of `data.test` are evaluated.
        console: Console of the progress bar.
        title: Text beside the bar.
        corruptions: Corrupted copies of the test set.
        process_group: Ranks that evaluate together, each on its shard. Default: this process alone.

    Returns:
        One result per corruption and severity, named NAME-SEVERITY as in fog-3, merged over the ranks.
    """
    group = process_group or ProcessGroup()
    test, results = _shard(data.test, group), list[AttackResult]()
    images = [
        (f"{name}-{severity}", corrupted)
        for name in corruptions.names
        for severity, corrupted in enumerate(corruptions.images(name), start=1)
    ]
    with image_progress(console, title, len(images) * test.num_images) as progress:
        for name, corrupted in images:
            pipeline = make_pipeline(
                config.data.engine,
                corrupted,
                data.dataset.test_labels,
                samples=test.samples,
                sampling=test.sampling,
                num_workers=config.data.num_workers,
                device=test.device,
            )
            accuracies = _evaluate(
                model,
                pipeline,
                ["natural"],
                group,
                threat_model=config.evaluation.threat_model,
                progress=partial(_advance, progress, name),
            )
            results += [replace(result, attack=name) for result in accuracies]
    return _merged_over_ranks(results, group)


def _advance(progress: ImageProgress, note: str, stage: str, num_images: int) -> None:
    progress.advance(num_images, note)


def _shard(pipeline: Pipeline, group: ProcessGroup) -> Pipeline:
    """Images of this rank."""
    return pipeline if group.size == 1 else pipeline.shard(group.rank, group.size)


def _evaluate(
    model: nn.Module,
    shard: Pipeline,
    attacks: Sequence[str],
    group: ProcessGroup,
    *,
    progress: Progress,
    **options: Any,
) -> list[AttackResult]:
    """Evaluates on the images of this rank; returns no results if there are fewer images than ranks."""
    if not shard.num_images and not group.is_first:
        return []

    def meet_after_batch(stage: str, num_images: int) -> None:
        progress(stage, num_images)
        group.progress()
        group.all_gather(False)

    return evaluate(model, _Images(shard), attacks, progress=meet_after_batch, **options)


@dataclass(frozen=True)
class _Images:
    """Images of a pipeline as a function that returns the batches, with their number as its length."""

    pipeline: Pipeline

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.pipeline.epoch(0)

    def __len__(self) -> int:
        return self.pipeline.num_images


def _merged_over_ranks(results: list[AttackResult], group: ProcessGroup) -> list[AttackResult]:
    """Merges the results of all ranks.

    A rank that is done meets the others after each of their batches, as a silent rank counts as lost.
    """
    group.pause()
    while not all(group.all_gather(True)):
        pass
    by_rank = [of_rank for of_rank in group.all_gather(results) if of_rank]
    return [merge(of_attack) for of_attack in zip(*by_rank, strict=True)]
