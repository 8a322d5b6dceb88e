"""Exports a network so that other programs can load it."""

import io
from pathlib import Path

import torch
from torch import Tensor

from fastadaad.models.recognition import Recognized, recognize
from fastadaad.models.weights_reading import read_state_dict
from fastadaad.models.weights_writing import save_tensors
from fastadaad.runtime.files import check_output, write_atomically

# Our networks -> the RobustBench class with the same parameter names and the same function.
ROBUSTBENCH_CLASSES = {
    "wrn": "WideResNet(depth={depth}, widen_factor={width}, num_classes={num_classes})",
    "resnet18": "ResNet(BasicBlock, [2, 2, 2, 2], num_classes={num_classes})",
    "resnet34": "ResNet(BasicBlock, [3, 4, 6, 3], num_classes={num_classes})",
    "preactresnet18": "PreActResNet(PreActBlockV2, [2, 2, 2, 2], num_classes={num_classes}, bn_before_fc=True)",
}


def export(source: Path, out: Path, *, prefix: str | None = None) -> list[str]:
    """Writes the network of a run folder or a weights file to a new file.

    Args:
        source: Run folder (its best.safetensors is read) or weights file.
        out: New file. A .safetensors file has fastadaad's names, for load_model, and the network's name in its header.
            A .pt file is a bare state dict with RobustBench's names; a normalisation that is not the identity becomes
            the buffers mu and sigma [1, C, 1, 1].
        prefix: Prefix or entry of the network in a file of several. Default: its only network.

    Returns:
        Lines that report the file and how to load it.

    Raises:
        ValueError: `out` exists, has another suffix or its folder is missing, or the network is not recognised.
        WeightsError: `source` cannot be read.
    """
    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{out} has another suffix: give .safetensors, or .pt for RobustBench's form")
    if out.exists():
        raise ValueError(f"{out} exists already: give another name, or move it away")
    check_output(out)
    weights_file = source / "best.safetensors" if source.is_dir() else source
    weights = read_state_dict(weights_file, prefix=prefix)
    recognized = recognize(weights)
    if not recognized:
        raise ValueError(f"{weights_file} holds no network that fastadaad builds: see fastadaad inspect")
    network = recognized[0]
    if out.suffix == ".safetensors":
        names = [candidate.name for candidate in recognized]
        save_tensors(out, weights, model=names, num_classes=network.num_classes, in_channels=network.in_channels)
        return [f"{out}: {' or '.join(names)}, for load_model({network.name!r}, checkpoint={str(out)!r})"]
    content = io.BytesIO()
    torch.save(robustbench_state_dict(weights), content)
    write_atomically(out, content.getvalue())
    return [f"{out}: {_class_of(network)}", *_normalization_note(weights)]


def robustbench_state_dict(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns `weights` with RobustBench's names: only those of the normalisation differ; an identity is left out."""
    bare = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith("normalize.")}
    if not _normalizes(weights):
        return bare
    mu, sigma = (weights[f"normalize.{name}"].reshape(1, -1, 1, 1) for name in ("mean", "std"))
    return {"mu": mu, "sigma": sigma, **bare}


def _normalizes(weights: dict[str, Tensor]) -> bool:
    mean, std = weights.get("normalize.mean"), weights.get("normalize.std")
    return mean is not None and std is not None and bool((mean != 0).any() or (std != 1).any())


def _class_of(network: Recognized) -> str:
    """Returns the RobustBench class that loads the state dict, in words."""
    family, *sizes = network.name.split("-")
    template = ROBUSTBENCH_CLASSES.get(family)
    if template is None:
        return f"{network.name}, which RobustBench has no class for; the names are fastadaad's"
    depth, width = sizes or ("", "")
    loader = template.format(depth=depth, width=width, num_classes=network.num_classes)
    return f"loads into RobustBench's {loader}"


def _normalization_note(weights: dict[str, Tensor]) -> list[str]:
    if not _normalizes(weights):
        return []
    return ["it has mu and sigma: the class must register them as buffers and apply (x - mu) / sigma, as some there do"]
