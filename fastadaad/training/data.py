"""Training, validation and test split of a run's data set, each as a pipeline."""

import logging
from contextlib import AbstractContextManager
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
    Mixing,
    Pipeline,
    Sampling,
    evaluation_subset,
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
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.torch_settings import fitting_threads

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Data set of a run and the pipelines of its splits."""

    dataset: Dataset
    train: Pipeline
    """Augmented and shuffled batches of this rank."""
    validation: Pipeline | None
    """Images without augmentation, in their order; None if the split is empty."""
    test: Pipeline
    """Images without augmentation, in their order."""

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return len(self.dataset.class_names)

    @property
    def num_channels(self) -> int:
        """Number of channels of an image."""
        return image_shape(self.dataset.train_images)[2]

    @cached_property
    def statistics(self) -> Statistics:
        """Mean and standard deviation per channel of the training pixels; the first use reads image files."""
        return self.dataset.statistics or channel_statistics(self.dataset.train_images)

    def fitting_threads(self, device: torch.device) -> AbstractContextManager[None]:
        """Context in which a command works on these images with networks on `device`: see runtime/torch_settings.py."""
        height, width, _ = image_shape(self.dataset.train_images)
        return fitting_threads(height, width, device)

    @property
    def skipped(self) -> dict[Path, str]:
        """Image files that were skipped so far, with the reasons."""
        skipped = dict(self.dataset.skipped)
        for pipeline in (self.train, self.validation, self.test):
            skipped |= {} if pipeline is None else pipeline.skipped
        return skipped


def training_data(config: RunConfig, device: torch.device, process_group: ProcessGroup | None = None) -> TrainingData:
    """Reads the data set of `config` and splits it; the splits are pure functions of the data and the seed.

    Args:
        config: Configuration of the run.
        device: Device of the batches.
        process_group: Ranks that train together: `train` has this rank's shard of each batch, validation and test have
            all images. Default: this process alone.

    Raises:
        ValueError: Files are missing or damaged, or the configured sizes do not fit the data set.
    """
    data, evaluation = config.data, config.evaluation
    process_group = process_group or ProcessGroup()
    if data.batch_size % process_group.size:
        raise ValueError(
            f"data.batch_size is {data.batch_size}, the images of a step of all {process_group.size} ranks: give a "
            f"multiple of {process_group.size}"
        )
    if (data.mixup or data.cutmix) and process_group.size > 1 and data.batch_size // process_group.size % 2:
        raise ValueError(
            f"data.batch_size is {data.batch_size}, {data.batch_size // process_group.size} images per rank: mixup and "
            f"cutmix mix the images of a rank in pairs, give a multiple of {2 * process_group.size}"
        )
    dataset = _load_after_download(data, process_group)
    check_same_on_all_ranks(dataset, process_group)
    train, validation = split_validation(dataset.train_labels, data.validation_size, config.seed)
    if data.num_samples is not None:
        train = train[subset(dataset.train_labels[train], data.num_samples, config.seed)]
    num_test = len(dataset.test_labels)
    num_chosen = evaluation.num_images or num_test
    if num_chosen > num_test:
        log.warning(f"evaluation.num_images is {num_chosen:,}: the test set has {num_test:,} images, all used")
    test = evaluation_subset(dataset.test_labels, min(num_chosen, num_test))
    images, labels, extra = _with_extra_images(data, dataset)

    def unaugmented(images: Images, labels: Tensor, samples: Tensor) -> Pipeline:
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
        mixing=_mixing(data, len(dataset.class_names)),
        num_workers=data.num_workers,
        device=device,
    )
    return TrainingData(
        dataset=dataset,
        train=training,
        # Uses the images that are on the device already for the training.
        validation=unaugmented(training.images, labels, validation) if len(validation) else None,
        test=unaugmented(dataset.test_images, dataset.test_labels, test),
    )


def _load_after_download(data: DataConfig, process_group: ProcessGroup) -> Dataset:
    """Loads the data set; if it is missing, one rank per node downloads it for the others."""
    if not data.download or process_group.size == 1:
        return _load(data)
    fetched = _load(data) if process_group.is_first_of_node else None
    process_group.all_gather(None)  # the other ranks wait
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
        auto_augment=data.auto_augment,
        color_jitter=data.color_jitter,
        cutout=data.cutout,
    )


def _mixing(data: DataConfig, num_classes: int) -> Mixing | None:
    """Returns the mixing of the batches, None if `data` has none."""
    if not (data.label_smoothing or data.mixup or data.cutmix):
        return None
    return Mixing(num_classes=num_classes, label_smoothing=data.label_smoothing, mixup=data.mixup, cutmix=data.cutmix)


def _with_extra_images(data: DataConfig, dataset: Dataset) -> tuple[Images, Tensor, Tensor]:
    """Appends data.extra_images to the training set; returns images, labels and the indices of the extra images."""
    own = dataset.train_images
    if data.extra_images is None:
        return own, dataset.train_labels, torch.arange(0)
    if isinstance(own, ImageFiles):
        raise DataError(
            f"{data.extra_images} has arrays and {own.root} has image files: run fastadaad pack on the image files"
        )
    path, num_classes = Path(data.extra_images), len(dataset.class_names)
    extra = ExtraImages(path, num_classes=num_classes, image_shape=image_shape(own))
    # The file is read into the common array directly, as the extra images may take most of the memory.
    images = torch.empty(len(own) + len(extra), *own.shape[1:], dtype=torch.uint8)
    images[: len(own)] = own
    extra.read_into(images[len(own) :])
    return images, torch.cat([dataset.train_labels, extra.labels]), torch.arange(len(own), len(images))
