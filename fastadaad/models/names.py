"""The table of model names and `load_model`, which reads it."""

import difflib
import os
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from fastadaad.models.checkpoint_reading import load_weights
from fastadaad.models.normalize import ChannelValues
from fastadaad.models.resnet import ResNet18
from fastadaad.models.small_cnn import SmallCNN
from fastadaad.models.wide_resnet import WideResNet

# Pattern of a name -> constructor; the numbers in the name are its first arguments.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    r"cnn-(\d+)": partial(SmallCNN, strides=(2, 2, 1)),
    r"cnn-(\d+)-s1": partial(SmallCNN, strides=(1, 2, 2)),
    r"resnet18": ResNet18,
    r"wrn-(\d+)-(\d+)": WideResNet,
}

# One spelling of each family and the sizes in common use, for help texts and for suggestions after a typing error.
MODEL_NAMES = (
    "cnn-16", "cnn-48", "cnn-72", "cnn-16-s1", "cnn-72-s1", "resnet18",
    "wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16",
)  # fmt: skip


def load_model(
    name: str,
    num_classes: int = 10,
    checkpoint: str | os.PathLike | None = None,
    *,
    in_channels: int = 3,
    mean: ChannelValues = 0.0,
    std: ChannelValues = 1.0,
) -> nn.Module:
    """The model `name`, in train mode on the CPU, mapping pixels [B, in_channels, H, W] in [0, 1] to logits.

    Names: cnn-<channels> for images of 16 pixels and more, cnn-<channels>-s1 for smaller ones, resnet18,
    wrn-<depth>-<width>. Weights are read from `checkpoint`, or drawn with torch's global generator. `mean` and `std`
    normalise the pixels inside the model; a checkpoint written by fastadaad brings its own. Raises ValueError for an
    unknown name and WeightsError for a checkpoint that does not fit.
    """
    model = _construct(name, num_classes=num_classes, in_channels=in_channels, mean=mean, std=std)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def _construct(name: str, **common) -> nn.Module:
    for pattern, constructor in FAMILIES.items():
        match = re.fullmatch(pattern, name)
        if match:
            return constructor(*map(int, match.groups()), **common)
    close = difflib.get_close_matches(name, MODEL_NAMES) or MODEL_NAMES
    raise ValueError(f"model {name!r} is unknown: did you mean {' or '.join(close)}?")
