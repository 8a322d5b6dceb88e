"""The table of model names and `load_model`, which reads it."""

import difflib
import os
import re
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fastadaad.models.mobilenet_v2 import MobileNetV2
from fastadaad.models.normalize import ChannelValues
from fastadaad.models.resnet import RESNET18, RESNET34, PreActResNet, ResNet
from fastadaad.models.small_cnn import SmallCNN
from fastadaad.models.small_resnet import SmallResNet
from fastadaad.models.timm_model import TimmModel
from fastadaad.models.weights_reading import load_weights
from fastadaad.models.wide_resnet import WideResNet
from fastadaad.runtime.file_limits import MODEL_PARAMETERS

# Pattern of a name -> constructor; what the groups of the pattern match are its first arguments.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    r"cnn-(\d{1,3})": partial(SmallCNN, strides=(2, 2, 1)),
    r"cnn-(\d{1,3})-s1": partial(SmallCNN, strides=(1, 2, 2)),
    r"rescnn-(\d{1,3})": SmallResNet,
    r"resnet18": partial(ResNet, num_blocks=RESNET18),
    r"resnet34": partial(ResNet, num_blocks=RESNET34),
    r"preact-?resnet18": partial(PreActResNet, num_blocks=RESNET18),
    r"mobilenet-v2": MobileNetV2,
    r"wrn-(\d{1,3})-(\d{1,3})": WideResNet,
    r"timm/(.+)": TimmModel,
}

# One spelling of each family and the sizes in common use, for help texts and for suggestions after a typing error.
MODEL_NAMES = (
    "cnn-16", "cnn-48", "cnn-72", "cnn-16-s1", "cnn-72-s1", "rescnn-8", "resnet18", "resnet34", "preactresnet18",
    "mobilenet-v2", "wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16",
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

    Names: cnn-<channels> for images of 16 pixels and more, cnn-<channels>-s1 for smaller ones, rescnn-<channels>,
    resnet18, resnet34, preactresnet18, mobilenet-v2, wrn-<depth>-<width>, and timm/<name> for any network of timm.
    Weights are read from `checkpoint`, or drawn with torch's global generator. `mean` and `std` normalise the pixels
    inside the model; a checkpoint that has a normalisation brings its own. Raises ValueError for an unknown name or a
    number below 1, and WeightsError for a checkpoint that does not fit.
    """
    for setting, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if number < 1:
            raise ValueError(f"{setting} is {number}: it must be 1 or more")
    model = _construct(name, num_classes=num_classes, in_channels=in_channels, mean=mean, std=std)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    return model


def _construct(name: str, **common) -> nn.Module:
    for pattern, constructor in FAMILIES.items():
        match = re.fullmatch(pattern, name)
        if match:
            arguments = [int(group) if group.isdigit() else group for group in match.groups()]
            construct = partial(constructor, *arguments, **common)
            if any(isinstance(argument, int) for argument in arguments):
                _check_size(name, construct)
            return construct()
    close = difflib.get_close_matches(name, MODEL_NAMES) or MODEL_NAMES
    raise ValueError(f"model {name!r} is unknown: did you mean {' or '.join(close)}?")


def _check_size(name: str, construct: Callable[[], nn.Module]) -> None:
    """Raises ValueError for a network that no memory has room for, as somebody else's configuration may name it."""
    with torch.device("meta"):  # shapes alone: nothing is allocated
        num_parameters = sum(parameter.numel() for parameter in construct().parameters())
    if num_parameters > MODEL_PARAMETERS:
        raise ValueError(f"model {name} has {num_parameters:,} parameters: choose one of {MODEL_PARAMETERS:,} at most")
