"""Identifies the network of a state dict by its parameter names and shapes."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from fastadaad.models.factory import load_model
from fastadaad.models.weights_names import without_prefixes
from fastadaad.models.weights_reading import misfits

# Families without a size in their names.
FIXED = ("resnet18", "resnet34", "preactresnet18", "mobilenet-v2", "vgg11", "vgg13", "vgg16", "vgg19")
CLASSIFIERS = ("fc.weight", "linear.weight", "classifier.weight", "logits.weight")
STEMS = ("conv1.weight", "features.0.0.weight", "features.0.weight", "init_conv.weight")


@dataclass(frozen=True, kw_only=True)
class Recognized:
    """load_model's arguments for a network that a state dict fits."""

    name: str
    num_classes: int
    in_channels: int


def recognize(weights: Mapping[str, Tensor]) -> list[Recognized]:
    """Finds the networks that a state dict fits, with no tensor missing or left over.

    Args:
        weights: State dict with fastadaad's names (see read_state_dict).

    Returns:
        All networks that fit; an empty list if none does. cnn-C and cnn-C-s1 are both returned, as they differ in
        strides alone and strides leave no trace in weights.
    """
    classifier = next((weights[name] for name in CLASSIFIERS if name in weights), None)
    stem = next((weights[name] for name in STEMS if name in weights), None)
    if classifier is None or stem is None or classifier.dim() != 2 or stem.dim() != 4:
        return []
    if not all(tensor.numel() for tensor in weights.values()):  # a size of 0 beside any other size
        return []
    num_classes, in_channels = len(classifier), stem.shape[1]
    return [
        Recognized(name=name, num_classes=num_classes, in_channels=in_channels)
        for name in _candidates(weights, len(stem))
        if _fits(weights, name, num_classes, in_channels)
    ]


def _candidates(weights: Mapping[str, Tensor], stem_channels: int) -> Iterator[str]:
    """Yields one name per family, with the sizes that the shapes imply."""
    if "features.0.0.weight" in weights:
        yield from (f"cnn-{stem_channels}", f"cnn-{stem_channels}-s1")
    for stage, convolution, form in (
        ("block1.layer.", ".conv1.weight", ""),
        ("layer.0.block.", ".conv_0.weight", "-swish"),
    ):
        first = weights.get(f"{stage}0{convolution}")
        if first is not None:
            num_blocks = sum(name.startswith(stage) and name.endswith(convolution) for name in weights)
            yield f"wrn-{6 * num_blocks + 4}-{max(len(first) // 16, 1)}{form}"
    if "block1.conv1.weight" in weights:
        yield f"rescnn-{stem_channels}"
    yield from FIXED


def _fits(weights: Mapping[str, Tensor], name: str, num_classes: int, in_channels: int) -> bool:
    with suppress(ValueError), torch.device("meta"):  # shapes alone: nothing is allocated
        network = load_model(name, num_classes=num_classes, in_channels=in_channels)
        return not misfits(weights, {without_prefixes(key): tensor for key, tensor in network.state_dict().items()})
    return False  # load_model does not build a network of these sizes
