"""The three splits of a run's data set, each as a pipeline."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fastadaad.config import DataConfig, RunConfig
from fastadaad.data import (
    Augmentation,
    DataError,
    Dataset,
    ImageFiles,
    Pipeline,
    Sampling,
    load_dataset,
    make_pipeline,
    split_validation,
    subset,
)
from fastadaad.data.dataset import Images, image_shape
from fastadaad.data.extra_images import ExtraImages
from fastadaad.data.rank_agreement import check_same_on_all_ranks
from fastadaad.data.statistics import Statistics, channel_statistics


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """train: augmented and shuffled; validation (None where its size is 0) and test: as they are."""

    dataset: Dataset
    train: Pipeline
    validation: Pipeline | None
    test: Pipeline

    @property
    def num_classes(self) -> int:
        return len(self.dataset.class_names)

    @property
    def num_channels(self) -> int:
        return image_shape(self.dataset.train_images)[2]

    @cached_property
    def statistics(self) -> Statistics:
        """(mean, std) of the training images' pixels in [0, 1], per channel; image files are read for it when asked."""
        return self.dataset.statistics or channel_statistics(self.dataset.train_images)

    @property
    def skipped(self) -> dict[Path, str]:
        """Image files that were left out so far, and why."""
        pipelines = [pipeline for pipeline in (self.train, self.validation, self.test) if pipeline is not None]
        return dict(self.dataset.skipped) | {path: why for part in pipelines for path, why in part.skipped.items()}


def training_data(config: RunConfig, device: torch.device) -> TrainingData:
    """Read the data set of `config` and split it; the splits are pure functions of the data and the seed.

    Raises ValueError where the files are missing or damaged or the sizes asked for do not fit.
    """
    data, evaluation = config.data, config.evaluation
    dataset = _load(data)
    check_same_on_all_ranks(dataset)
    train, validation = split_validation(dataset.train_labels, data.validation_size, config.seed)
    if data.num_samples is not None:
        train = train[subset(dataset.train_labels[train], data.num_samples, config.seed)]
    test = torch.arange(len(dataset.test_labels))[: evaluation.num_images]

    def as_they_are(images: Images, labels: Tensor, samples: Tensor) -> Pipeline:
        return make_pipeline(
            data.engine,
            images,
            labels,
            samples=samples,
            sampling=Sampling(batch_size=evaluation.batch_size, shuffle=False),
            num_workers=data.num_workers,
            device=device,
        )

    return TrainingData(
        dataset=dataset,
        train=_train(config, dataset, train, device),
        validation=as_they_are(dataset.train_images, dataset.train_labels, validation) if len(validation) else None,
        test=as_they_are(dataset.test_images, dataset.test_labels, test),
    )


def _load(data: DataConfig) -> Dataset:
    return load_dataset(
        data.name,
        root=data.root,
        download=data.download,
        image_size=data.image_size,
        center_share=data.center_share,
        on_error=data.on_error,
    )


def _train(config: RunConfig, dataset: Dataset, samples: Tensor, device: torch.device) -> Pipeline:
    data = config.data
    images, labels, num_extra = dataset.train_images, dataset.train_labels, 0
    if data.extra_images is not None:
        images, labels, num_extra = _with_extra_images(Path(data.extra_images), dataset)
        samples = torch.cat([samples, torch.arange(len(labels) - num_extra, len(labels))])
    return make_pipeline(
        data.engine,
        images,
        labels,
        samples=samples,
        sampling=Sampling(
            batch_size=data.batch_size,
            seed=config.seed,
            drop_last=True,
            num_extra=num_extra,
            extra_share=data.extra_share,
        ),
        augmentation=Augmentation(
            min_crop_scale=data.min_crop_scale,
            padding=data.padding,
            flip=data.flip,
            color_jitter=data.color_jitter,
            cutout=data.cutout,
        ),
        num_workers=data.num_workers,
        device=device,
    )


def _with_extra_images(path: Path, dataset: Dataset) -> tuple[Tensor, Tensor, int]:
    """Images and labels of the training set with those of `path` behind them, and how many these are."""
    own = dataset.train_images
    if isinstance(own, ImageFiles):
        raise DataError(f"{path} has arrays and {own.root} has image files: run fastadaad pack for the latter")
    extra = ExtraImages(path, num_classes=len(dataset.class_names), image_shape=image_shape(own))
    # One array for both, into which the file is read directly: the extra images may be most of the memory.
    images = torch.empty(len(own) + len(extra), *own.shape[1:], dtype=torch.uint8)
    images[: len(own)] = own
    extra.read_into(images[len(own) :])
    return images, torch.cat([dataset.train_labels, extra.labels]), len(extra)
