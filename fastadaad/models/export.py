"""Writing a network so that other programs load it."""

import io
from pathlib import Path

import torch
from torch import Tensor

from fastadaad.models.recognition import Recognized, recognize
from fastadaad.models.weights_reading import read_state_dict
from fastadaad.models.weights_writing import save_tensors
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.output_files import check_output

# Our networks -> the class of RobustBench with the same names and the same function.
ROBUSTBENCH_CLASSES = {
    "wrn": "WideResNet(depth={depth}, widen_factor={width}, num_classes={num_classes})",
    "resnet18": "ResNet(BasicBlock, [2, 2, 2, 2], num_classes={num_classes})",
    "resnet34": "ResNet(BasicBlock, [3, 4, 6, 3], num_classes={num_classes})",
    "preactresnet18": "PreActResNet(PreActBlockV2, [2, 2, 2, 2], num_classes={num_classes}, bn_before_fc=True)",
}


def export(source: Path, out: Path) -> list[str]:
    """Write the network of a run folder or a weights file to `out`; returns lines that say what was written.

    .safetensors: our names, so that load_model reads it, with the network's name in the header. .pt: a bare state dict
    with RobustBench's names, and the normalisation as the buffers mu and sigma [1, C, 1, 1] where there is one.
    Raises ValueError where `out` exists, has another ending or is in no folder, or the network is not recognised.
    """
    if out.suffix not in (".safetensors", ".pt"):
        raise ValueError(f"{out} has another ending: give .safetensors, or .pt for RobustBench's form")
    if out.exists():
        raise ValueError(f"{out} exists already: give another name, or move it away")
    check_output(out)
    weights_file = source / "best.safetensors" if source.is_dir() else source
    weights = read_state_dict(weights_file)
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
    """`weights` with RobustBench's names: ours, but for the normalisation, which is left out where it does nothing."""
    bare = {name: tensor.contiguous() for name, tensor in weights.items() if not name.startswith("normalize.")}
    if not _normalizes(weights):
        return bare
    mu, sigma = (weights[f"normalize.{name}"].reshape(1, -1, 1, 1) for name in ("mean", "std"))
    return {"mu": mu, "sigma": sigma, **bare}


def _normalizes(weights: dict[str, Tensor]) -> bool:
    mean, std = weights.get("normalize.mean"), weights.get("normalize.std")
    return mean is not None and std is not None and bool((mean != 0).any() or (std != 1).any())


def _class_of(network: Recognized) -> str:
    """What loads the state dict."""
    family, *sizes = network.name.split("-")
    template = ROBUSTBENCH_CLASSES.get(family)
    if template is None:
        return f"{network.name}, of which RobustBench has no class; its names are fastadaad's"
    depth, width = sizes or ("", "")
    loader = template.format(depth=depth, width=width, num_classes=network.num_classes)
    return f"loads into RobustBench's {loader}"


def _normalization_note(weights: dict[str, Tensor]) -> list[str]:
    if not _normalizes(weights):
        return []
    return ["it has mu and sigma: the class must register them as buffers and apply (x - mu) / sigma, as some there do"]
