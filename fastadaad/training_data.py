"""The three splits of a run's data set, each as a pipeline."""

from dataclasses import dataclass

import torch

from fastadaad.config import RunConfig
from fastadaad.data import ResidentPipeline, load_dataset, split_validation, subset


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """train: augmented and shuffled; validation (None where its size is 0) and test: as they are."""

    train: ResidentPipeline
    validation: ResidentPipeline | None
    test: ResidentPipeline
    num_classes: int
    mean: tuple[float, ...]
    """Of the training images' pixels in [0, 1], per channel."""
    std: tuple[float, ...]


def training_data(config: RunConfig, device: torch.device) -> TrainingData:
    """Read the data set of `config` and split it; the splits are pure functions of the data and the seed.

    Raises ValueError where the files are missing or damaged or the sizes asked for do not fit.
    """
    data, evaluation = config.data, config.evaluation
    dataset = load_dataset(data.name, root=data.root, download=data.download)
    train, validation = split_validation(dataset.train_labels, data.validation_size, config.seed)
    if data.num_samples is not None:
        train = train[subset(dataset.train_labels[train], data.num_samples, config.seed)]

    def as_it_is(images: torch.Tensor, labels: torch.Tensor) -> ResidentPipeline:
        return ResidentPipeline(
            images, labels, batch_size=evaluation.batch_size, seed=0, shuffle=False, drop_last=False, device=device
        )

    mean, std = channel_statistics(dataset.train_images)
    return TrainingData(
        train=ResidentPipeline(
            dataset.train_images[train],
            dataset.train_labels[train],
            batch_size=data.batch_size,
            seed=config.seed,
            padding=data.padding,
            flip=data.flip,
            shuffle=True,
            drop_last=True,
            device=device,
        ),
        validation=as_it_is(dataset.train_images[validation], dataset.train_labels[validation])
        if len(validation)
        else None,
        test=as_it_is(dataset.test_images[: evaluation.num_images], dataset.test_labels[: evaluation.num_images]),
        num_classes=len(dataset.class_names),
        mean=mean,
        std=std,
    )


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of images uint8 [M, H, W, C] per channel, in pixel units."""
    # From the 256 counts of a channel, exactly and without a float copy of the data set.
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(-1)]).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ values
    std = (share @ values.square() - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(std.tolist())
