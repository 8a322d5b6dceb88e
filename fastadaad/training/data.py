"""The three splits of a run's data set, each as a pipeline."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

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
from fastadaad.data.datasets.extra_images import ExtraImages
from fastadaad.data.rank_agreement import check_same_on_all_ranks
from fastadaad.data.statistics import Statistics, channel_statistics
from fastadaad.run_config import DataConfig, RunConfig
from fastadaad.runtime.distributed import ProcessGroup, current_process_group


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

    With several processes `train` has this one's share of each batch, and the others have all images. Raises ValueError
    where the files are missing or damaged or the sizes asked for do not fit.
    """
    data, evaluation = config.data, config.evaluation
    process_group = current_process_group()
    if data.batch_size % process_group.size:
        raise ValueError(
            f"data.batch_size is {data.batch_size}, the images of a step of all {process_group.size} processes: give a "
            f"multiple of {process_group.size}"
        )
    dataset = _load_after_download(data, process_group)
    check_same_on_all_ranks(dataset)
    train, validation = split_validation(dataset.train_labels, data.validation_size, config.seed)
    if data.num_samples is not None:
        train = train[subset(dataset.train_labels[train], data.num_samples, config.seed)]
    test = torch.arange(len(dataset.test_labels))[: evaluation.num_images]
    images, labels, extra = _with_extra_images(data, dataset)

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

    training = make_pipeline(
        data.engine,
        images,
        labels,
        samples=torch.cat([train, extra]),
        sampling=Sampling(
            batch_size=data.batch_size // process_group.size,
            shard=process_group.rank,
            num_shards=process_group.size,
            seed=config.seed,
            drop_last=True,
            num_extra=len(extra),
            extra_share=data.extra_share,
        ),
        augmentation=_augmentation(data),
        num_workers=data.num_workers,
        device=device,
    )
    return TrainingData(
        dataset=dataset,
        train=training,
        # Of the images that the training has on the device already.
        validation=as_they_are(training.images, labels, validation) if len(validation) else None,
        test=as_they_are(dataset.test_images, dataset.test_labels, test),
    )


def _load_after_download(data: DataConfig, process_group: ProcessGroup) -> Dataset:
    """The data set, which one process of a node fetches for all of them where it is missing."""
    if not data.download or process_group.size == 1:
        return _load(data)
    fetched = _load(data) if process_group.is_first_of_node else None
    process_group.all_gather(None)  # the others wait
    return fetched or _load(replace(data, download=False))


def _load(data: DataConfig) -> Dataset:
    return load_dataset(
        data.name,
        root=data.root,
        download=data.download,
        image_size=data.image_size,
        center_share=data.center_share,
        on_error=data.on_error,
    )


def _augmentation(data: DataConfig) -> Augmentation:
    return Augmentation(
        min_crop_scale=data.min_crop_scale,
        padding=data.padding,
        flip=data.flip,
        color_jitter=data.color_jitter,
        cutout=data.cutout,
    )


def _with_extra_images(data: DataConfig, dataset: Dataset) -> tuple[Images, Tensor, Tensor]:
    """Images and labels of the training set, those of data.extra_images behind them, and the indices of these."""
    own = dataset.train_images
    if data.extra_images is None:
        return own, dataset.train_labels, torch.arange(0)
    if isinstance(own, ImageFiles):
        raise DataError(f"{data.extra_images} has arrays and {own.root} has image files: run fastadaad pack for these")
    path, num_classes = Path(data.extra_images), len(dataset.class_names)
    extra = ExtraImages(path, num_classes=num_classes, image_shape=image_shape(own))
    # One array for both, into which the file is read directly: the extra images may be most of the memory.
    images = torch.empty(len(own) + len(extra), *own.shape[1:], dtype=torch.uint8)
    images[: len(own)] = own
    extra.read_into(images[len(own) :])
    return images, torch.cat([dataset.train_labels, extra.labels]), torch.arange(len(own), len(images))
