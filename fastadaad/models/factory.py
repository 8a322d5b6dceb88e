"""Builds networks by name: the table of names, `load_model`, and `create_model` with timm's arguments."""

import difflib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastadaad.models.mobilenet_v2 import MobileNetV2
from fastadaad.models.normalize import ChannelValues
from fastadaad.models.resnet import RESNET18, RESNET34, PreActResNet, ResNet
from fastadaad.models.shipped import checkpoint_path
from fastadaad.models.small_cnn import SmallCNN
from fastadaad.models.small_resnet import SmallResNet
from fastadaad.models.swish_wide_resnet import SwishWideResNet
from fastadaad.models.timm_model import TimmModel
from fastadaad.models.vgg import VGG
from fastadaad.models.weights_reading import WeightsError, load_weights
from fastadaad.models.wide_resnet import WideResNet
from fastadaad.runtime.untrusted_files import MODEL_PARAMETERS, SMALL_PARAMETERS

# Pattern of a name -> constructor. The groups of the pattern are the constructor's first arguments.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    r"cnn-(\d{1,3})": partial(SmallCNN, strides=(2, 2, 1)),
    r"cnn-(\d{1,3})-s1": partial(SmallCNN, strides=(1, 2, 2)),
    r"rescnn-(\d{1,3})": SmallResNet,
    r"resnet18": partial(ResNet, num_blocks=RESNET18),
    r"resnet34": partial(ResNet, num_blocks=RESNET34),
    r"preactresnet18": partial(PreActResNet, num_blocks=RESNET18),
    r"mobilenet-v2": MobileNetV2,
    r"vgg(11|13|16|19)": VGG,
    r"wrn-(\d{1,3})-(\d{1,3})": WideResNet,
    r"wrn-(\d{1,3})-(\d{1,3})-swish": SwishWideResNet,
    r"timm/(.+)": TimmModel,
}

# Every family at the sizes in common use: for help texts, and for suggestions after a typing error.
MODEL_NAMES = (
    "cnn-16", "cnn-48", "cnn-72", "cnn-16-s1", "cnn-72-s1", "rescnn-8", "resnet18", "resnet34", "preactresnet18",
    "mobilenet-v2", "vgg16", "wrn-16-4", "wrn-28-10", "wrn-34-10", "wrn-34-20", "wrn-70-16",
    "wrn-28-10-swish", "wrn-70-16-swish",
)  # fmt: skip
WIDE_RESNET = re.compile(r"(?:wide[_-]?resnet|wrn)[_-]?([0-9]+)[_-]([0-9]+)", re.IGNORECASE)


def load_model(
    name: str,
    num_classes: int = 10,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    in_channels: int | None = None,
    in_chans: int | None = None,
    mean: ChannelValues = 0.0,
    std: ChannelValues = 1.0,
    prefix: str | None = None,
) -> nn.Module:
    """Builds the network `name`; its weights are random without `checkpoint`.

    Args:
        name: cnn-<channels> for images of 16 pixels and more, cnn-<channels>-s1 for smaller ones, rescnn-<channels>,
            resnet18, resnet34, preactresnet18, mobilenet-v2, vgg<layers>, wrn-<depth>-<width>, the same with -swish, or
            timm/<name> for any network of timm. Spellings of other programs are accepted (see canonical_name).
        num_classes: Number of logits.
        checkpoint: Weights file (.safetensors, .pt, .pth or .ckpt), or "shipped:NAME" for weights of the package.
            Default: weights drawn with torch's global generator.
        in_channels: Channels of an image. Default: 3.
        in_chans: timm's word for in_channels.
        mean: Subtracted from the pixels inside the network; one number, or one per channel. A checkpoint that has a
            normalisation replaces `mean` and `std`.
        std: The pixels minus `mean` are divided by it; one number, or one per channel.
        prefix: Prefix or entry of the network in a checkpoint of several, such as "student" in a Lightning checkpoint.
            Default: its only network.

    Returns:
        The network in train mode on the CPU. It maps pixels [B, in_channels, H, W] in [0, 1] to logits
        [B, num_classes].

    Raises:
        ValueError: The name is unknown, a number is below 1, both in_channels and in_chans are given, or the package
            has no weights of this name.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    if in_channels is not None and in_chans is not None:
        raise ValueError(f"in_channels is {in_channels} and in_chans {in_chans}: they mean the same, give one of them")
    channels = next((number for number in (in_channels, in_chans) if number is not None), 3)
    for setting, number in (("num_classes", num_classes), ("in_channels", channels)):
        if number < 1:
            raise ValueError(f"{setting} is {number}: it must be 1 or more")
    if checkpoint is not None:
        _check_file_holds(canonical_name(name), Path(checkpoint), num_classes=num_classes, in_channels=channels)
    model = _construct(canonical_name(name), num_classes=num_classes, in_channels=channels, mean=mean, std=std)
    if checkpoint is not None:
        load_weights(model, checkpoint_path(os.fspath(checkpoint)), prefix=prefix)
    return model


def create_model(
    model_name: str,
    pretrained: bool = False,
    num_classes: int = 10,
    in_chans: int = 3,
    checkpoint_path: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Calls `load_model` with the arguments of timm.create_model; the names are those of load_model.

    Args:
        model_name: As in load_model: "resnet18" is the CIFAR network, "timm/resnet18" is timm's.
        pretrained: Must be False, as nothing is downloaded.
        num_classes: Number of logits.
        in_chans: Channels of an image.
        checkpoint_path: Weights file. Default (None or ""): random weights.

    Returns:
        The network of load_model.

    Raises:
        ValueError: As in load_model, and for pretrained=True.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    if pretrained:
        raise ValueError(
            "pretrained=True, but fastadaad downloads no weights: `fastadaad teachers` lists files to fetch, "
            "load_model reads one with checkpoint=FILE and create_model with checkpoint_path=FILE"
        )
    return load_model(model_name, num_classes, checkpoint_path or None, in_chans=in_chans)


def canonical_name(name: str) -> str:
    """Returns load_model's name of a network in another program's spelling; an unknown name is returned unchanged.

    Case, "-" and "_" are ignored: ResNet-18, PreActResNet18, MobileNetV2. WideResNet-28-10, WRN-28-10 and
    wideresnet28_10 are wrn-28-10, of any depth and width.
    """
    wide = WIDE_RESNET.fullmatch(name)
    if wide:
        return f"wrn-{wide[1]}-{wide[2]}"
    return {_plain(known): known for known in MODEL_NAMES}.get(_plain(name), name)


def _plain(name: str) -> str:
    return re.sub(r"[_-]", "", name.lower())


def _construct(name: str, **common: Any) -> nn.Module:
    for pattern, constructor in FAMILIES.items():
        match = re.fullmatch(pattern, name)
        if match:
            arguments = [int(group) if group.isdigit() else group for group in match.groups()]
            construct = partial(constructor, *arguments, **common)
            if any(isinstance(argument, int) for argument in arguments):
                _check_size(name, construct)
            return construct()
    close = difflib.get_close_matches(name.lower(), MODEL_NAMES) or MODEL_NAMES
    raise ValueError(f"model {name!r} is unknown: did you mean {' or '.join(close)}?")


def _check_file_holds(name: str, path: Path, **common: Any) -> None:
    """Raises WeightsError, before memory is allocated, if a large network has more parameters than the file bytes."""
    if not path.is_file():
        return
    try:
        with torch.device("meta"):  # shapes alone: nothing is allocated
            num_parameters = sum(parameter.numel() for parameter in _construct(name, **common).parameters())
    except (NotImplementedError, RuntimeError):  # some networks of timm read a tensor's value
        return
    size = path.stat().st_size
    if num_parameters > max(size, SMALL_PARAMETERS):
        raise WeightsError(f"{path} has {size} bytes, and model {name} {num_parameters:,} parameters: check the name")


def _check_size(name: str, construct: Callable[[], nn.Module]) -> None:
    """Raises ValueError if the network has more than MODEL_PARAMETERS; an untrusted configuration may name any size."""
    with torch.device("meta"):  # shapes alone: nothing is allocated
        num_parameters = sum(parameter.numel() for parameter in construct().parameters())
    if num_parameters > MODEL_PARAMETERS:
        raise ValueError(f"model {name} has {num_parameters:,} parameters: choose one of {MODEL_PARAMETERS:,} at most")
