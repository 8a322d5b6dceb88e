"""Checks before the training of labels, pixels, networks and teacher: mistakes that would otherwise cost hours."""

import copy
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadaad.data import Augmentation, Pipeline
from fastadaad.data.dataset import image_shape
from fastadaad.evaluation import AttackResult, evaluate
from fastadaad.inner.checks import check_batch, check_radius, check_values, logits_of
from fastadaad.models.robust_teachers import shortfall
from fastadaad.run_config import RunConfig
from fastadaad.runtime.text import pixels_text
from fastadaad.training.data import TrainingData

log = logging.getLogger(__name__)

NUM_CHECKED = 16  # images on which a network's logits are checked
ATTACK = "pgd10"  # attack on the teacher: it costs about as much as a step on the same number of images
# An accuracy is significant this number of standard deviations above chance level. One in 700 guessing teachers is.
CLEAR_OF_CHANCE = 3.0


def check_before_training(
    config: RunConfig,
    data: TrainingData,
    student: nn.Module,
    teacher: nn.Module | None,
) -> None:
    """Checks labels, the first batch and both networks of a run, and logs the teacher's accuracy.

    The teacher is measured on config.teacher_check images (0: not at all) of the validation split or, without one, of
    the training images without augmentation. Nothing is changed, and all ranks find the same.

    Raises:
        ValueError: A check fails; the message is one line.
    """
    _check_labels(data)
    _check_augmentation(config, data)
    x_natural, labels = next(data.train.epoch(0))
    _check_batch(data, x_natural, labels)
    for threat_model in (config.inner.threat_model, config.evaluation.threat_model):
        check_radius(threat_model, x_natural.shape[1:])
    _check_network(f"student {config.student.name}", student, x_natural, data)
    if teacher is not None:
        name = f"teacher {config.teacher.name}" if config.teacher is not None else "teacher"
        _check_network(name, teacher, x_natural, data)
        if config.teacher_check:
            _check_teacher(name, config, data, teacher)


def _check_labels(data: TrainingData) -> None:
    for split, pipeline in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        labels = torch.arange(0) if pipeline is None else pipeline.labels
        outside = labels[(labels < 0) | (labels >= data.num_classes)]
        if len(outside):
            raise ValueError(
                f"data set {data.dataset.name} has the {split} label {outside[0]}, outside 0..{data.num_classes - 1}: "
                "number its classes from 0, in the order of class_names"
            )


def _check_augmentation(config: RunConfig, data: TrainingData) -> None:
    """Raises ValueError if a crop or a black square may cover a whole image."""
    side = min(image_shape(data.train.images)[:2])
    for name, pixels in (("padding", config.data.padding), ("cutout", config.data.cutout)):
        if pixels >= side:
            raise ValueError(
                f"data.{name} is {pixels}, and images of {side} pixels may become all black by it: choose less than "
                f"{side}, such as {side // 8 if name == 'padding' else side // 2}"
            )


def _check_batch(data: TrainingData, x_natural: Tensor, labels: Tensor) -> None:
    """Checks the first training batch."""
    try:
        check_batch(x_natural, labels, soft=data.train.mixing is not None)
        check_values(x_natural, labels, data.num_classes)
    except ValueError as error:
        raise ValueError(f"data set {data.dataset.name}: {error}") from error
    if not x_natural.isfinite().all():
        raise ValueError(f"data set {data.dataset.name}: x_natural holds NaN: find and repair these images")
    if x_natural.shape[1] != data.num_channels:
        raise ValueError(
            f"data set {data.dataset.name}: x_natural has {x_natural.shape[1]} channels and its images have "
            f"{data.num_channels}: give the pipeline images [M, H, W, C]"
        )


def _check_network(name: str, network: nn.Module, x_natural: Tensor, data: TrainingData) -> None:
    """Raises ValueError unless the logits are finite and there is one per class of the data set."""
    logits = logits_of(name, network, x_natural[:NUM_CHECKED])
    if logits.shape[1] != data.num_classes:
        raise ValueError(
            f"{name} has {logits.shape[1]} classes and data set {data.dataset.name} has {data.num_classes}: student, "
            "teacher and data set must have the same"
        )
    if not logits.isfinite().all():
        raise ValueError(f"{name} returns NaN or inf: its weights are damaged, give other ones")


def _check_teacher(name: str, config: RunConfig, data: TrainingData, teacher: nn.Module) -> None:
    """Logs the teacher's accuracy. Raises ValueError if it is not above chance level."""
    num_images = config.teacher_check
    split = "training" if data.validation is None else "validation"
    pipeline = _drawn(data.validation or data.train, config, num_images)
    natural, robust = evaluate(
        copy.deepcopy(teacher),  # the evaluation's caches are freed with the copy
        lambda: _first(pipeline, num_images),
        ("natural", ATTACK),
        threat_model=config.evaluation.threat_model,
        seed=config.seed,
    )
    measured = f"{100 * natural.accuracy:.1f} % natural accuracy on {natural.num_images} {split} images"
    _check_above_chance(f"{name} has {measured}", natural, data.num_classes)
    attack = f"{100 * robust.accuracy:.1f} % under {ATTACK} with {robust.norm} epsilon {pixels_text(robust.epsilon)}"
    log.info(f"{name}: {measured}, {attack}")
    if config.teacher is not None and config.teacher.checkpoint is not None:
        file = Path(config.teacher.checkpoint).stem
        warning = shortfall(file, data.dataset.name, natural.accuracy, natural.num_images)
        if warning is not None:
            log.warning(f"{name}: {warning}")


def _check_above_chance(measured: str, natural: AttackResult, num_classes: int) -> None:
    """Raises ValueError that begins with `measured` if the accuracy is not CLEAR_OF_CHANCE above chance level."""
    chance = 1 / num_classes
    deviation = CLEAR_OF_CHANCE * math.sqrt(chance * (1 - chance) / natural.num_images)
    # If even an accuracy of 1 is not significant, there are too few images to decide.
    if natural.accuracy > chance + deviation or chance + deviation >= 1:
        return
    cause = "its normalisation is missing (set teacher.normalize=true), its classes are in another order than the data "
    cause += "set's, or these are not its weights"
    if natural.accuracy < chance - deviation:
        cause = "its classes are in another order than the data set's, or its normalisation is missing"
    raise ValueError(
        f"{measured}, chance level is {100 * chance:.1f} % (not significant below {100 * (chance + deviation):.1f} %): "
        f"{cause}; repair it, or train from it anyway with --teacher-check 0"
    )


def _drawn(pipeline: Pipeline, config: RunConfig, num_images: int) -> Pipeline:
    """Returns the pipeline unaugmented and shuffled, as image folders are sorted by class; the same on all ranks."""
    drawn = copy.copy(pipeline)
    drawn.augmentation, drawn.mixing = Augmentation(), None
    drawn.sampling = replace(
        pipeline.sampling,
        batch_size=min(num_images, config.evaluation.batch_size),
        seed=config.seed,
        shuffle=True,
        drop_last=False,
        num_extra=0,  # draws the extra images like all others
        shard=0,
        num_shards=1,
    )
    return drawn


def _first(pipeline: Pipeline, num_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    missing = num_images
    for x_natural, labels in pipeline.epoch(0):
        yield x_natural[:missing], labels[:missing]
        missing -= len(labels)
        if missing <= 0:
            return
