"""Weights files, one's own and other people's, read without running any code that they may carry."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

WRAPPERS = ("state_dict", "model", "net")
PREFIXES = re.compile(r"^(module\.|model\.|_orig_mod\.)+")
# What a file may lack: the counters are unused with a fixed momentum, and only fastadaad's models carry a Normalize.
OPTIONAL = re.compile(r"(.*\.)?num_batches_tracked|normalize\.(mean|std)")
MAX_LISTED = 3


class WeightsError(ValueError):
    """A weights file that cannot be read or does not fit; the message is one line that names it and what to do."""


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Copies the weights in a file into `model`, all of them or none. Raises WeightsError.

    Strict, except that a file without batch-norm counters or normalisation leaves those of `model` as they are.
    """
    expected, found = model.state_dict(), read_state_dict(path)
    problems = {
        "missing": [key for key in expected if key not in found and not OPTIONAL.fullmatch(key)],
        "unexpected": [key for key in found if key not in expected],
        "of wrong shape": [
            f"{key} {list(found[key].shape)} instead of {list(expected[key].shape)}"
            for key in expected
            if key in found and found[key].shape != expected[key].shape
        ],
    }
    if any(problems.values()):
        details = "; ".join(f"{len(items)} {kind} ({_first(items)})" for kind, items in problems.items() if items)
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {details}: check the model's name, num_classes, in_channels"
        )
    model.load_state_dict(expected | found)


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch.save file, on the CPU, wherever it is nested. Raises WeightsError.

    Leading module., model. and _orig_mod. are stripped from the names.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give a .safetensors, .pt or .pth file")
    content = _unwrap(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_save(path))
    if not _is_state_dict(content):
        raise WeightsError(
            f"{path} holds no state dict, neither directly nor under {', '.join(WRAPPERS)}: save model.state_dict()"
        )
    weights = {PREFIXES.sub("", key): value for key, value in content.items()}
    if len(weights) < len(content):
        raise WeightsError(f"{path} holds names that differ only in a prefix such as module.: save one network alone")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is no safetensors file or is corrupt ({error}): fetch it again") from error


def _read_torch_save(path: Path) -> Any:
    """What torch.save wrote, restricted to tensors and plain containers."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the bytes of a corrupt pickle can lead to any exception
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code:
            raise WeightsError(
                f"{path} is refused: it asks to call {code[1]} while it is read, and so could run any code; "
                "save its state dict alone, best as .safetensors"
            ) from error
        raise WeightsError(f"{path} is no torch.save file or is corrupt: fetch it again") from error


def _unwrap(content: Any) -> Any:
    """The innermost mapping under any nesting of WRAPPERS."""
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    return content


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    )


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:MAX_LISTED]) + (", ..." if len(items) > MAX_LISTED else "")
