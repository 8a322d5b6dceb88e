"""Reads weights files, including third-party files, without running any code in them."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastadaad.models.weights_checks import ForbiddenCallError, check_safetensors, check_torch_save
from fastadaad.models.weights_names import WRAPPERS, Checkpoint, by_our_names, unwrap, without_prefixes
from fastadaad.runtime.text import InputError
from fastadaad.runtime.untrusted_files import UNPACKED_BYTES, is_web_page

# Tensors that a file may lack: the counters are unused with a fixed momentum; only fastadaad's models have a Normalize.
OPTIONAL = re.compile(r"(.*\.)?num_batches_tracked|normalize\.(mean|std)")
MAX_LISTED = 3
NUMBER_TYPE = re.compile("b1|[iuf](1|2|4|8)")


class _NumberType:
    """Replaces numpy's dtype, which can have any size and crashes if it is built from a malformed state."""

    def __init__(self, code: str, *flags: bool) -> None:
        if not NUMBER_TYPE.fullmatch(code):
            raise ValueError(f"it holds a number of numpy's type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> np.generic:
    """Replaces numpy's function `scalar`."""
    return np.frombuffer(content, kind.dtype)[0]


# Values that training programs save beside the weights: the command line, and accuracies as numpy numbers.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),  # before numpy 2
    (_number, "numpy._core.multiarray.scalar"),
]


class WeightsError(InputError):
    """A weights file that cannot be read, or that does not fit the network."""


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copies the weights of a file into `model`: all of them, or none if something does not fit.

    Strict, with one exception: batch-norm counters and the normalisation may be missing in the file; `model` then keeps
    its own.

    Args:
        model: Network to change.
        path: Weights file (.safetensors, .pt or .pth), with or without module prefixes and nesting.

    Raises:
        WeightsError: The file cannot be read, or tensors are missing, unexpected or of wrong shape.
    """
    names = {without_prefixes(name): name for name in model.state_dict()}
    expected = {name: model.state_dict()[own] for name, own in names.items()}
    found = read_state_dict(path)
    problems = misfits(found, expected)
    if problems:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {problems}: check the model's name, num_classes, in_channels"
        )
    model.load_state_dict({names[name]: tensor for name, tensor in (expected | found).items()})


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Returns the differences in words: tensors missing, unexpected or of wrong shape; "" if all tensors fit."""
    problems = {
        "missing": [name for name in expected if name not in found and not OPTIONAL.fullmatch(name)],
        "unexpected": [name for name in found if name not in expected],
        "of wrong shape": [
            f"{name} {list(found[name].shape)} instead of {list(expected[name].shape)}"
            for name in expected
            if name in found and found[name].shape != expected[name].shape
        ],
    }
    return "; ".join(f"{len(items)} {kind} ({_first(items)})" for kind, items in problems.items() if items)


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Reads the weights of a file under fastadaad's names.

    Args:
        path: Weights file (.safetensors, .pt or .pth), with or without module prefixes and nesting.

    Returns:
        Parameter name -> tensor on the CPU.

    Raises:
        WeightsError: The file cannot be read, holds no state dict or more than one network, or could run code.
    """
    return read_checkpoint(path).weights


def check_is_file(path: Path) -> None:
    """Raises WeightsError if `path` is a folder or does not exist."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}: give a .safetensors, .pt or .pth file")


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads weights as read_state_dict does, with their nesting and the names that were left out (weights_names.py)."""
    path = Path(path)
    check_is_file(path)
    if is_web_page(path):
        raise WeightsError(f"{path} is a web page, not weights: fetch the file itself, not the page about it")
    content, entry = unwrap(_read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_save(path))
    if not _is_state_dict(content):
        raise WeightsError(
            f"{path} holds no state dict, neither directly nor under {', '.join(WRAPPERS)}: save model.state_dict()"
        )
    _check_tensors(path, content)
    try:
        return by_our_names(content, entry)
    except ValueError as error:
        raise WeightsError(f"{path} holds more than one network ({error}): save one alone") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_safetensors(path)
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"{path} is not a safetensors file or is corrupt ({reason}): fetch it again") from error


def _read_torch_save(path: Path) -> Any:
    """Reads a torch.save file, restricted to tensors, plain containers and HARMLESS values."""
    try:
        check_torch_save(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ForbiddenCallError as error:
        raise WeightsError(
            f"{path} is refused: loading it calls {error}, which could run any code or fill the memory; "
            "save its state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # the bytes of a corrupt pickle can lead to any exception
        raise WeightsError(f"{path} is not a torch.save file or is corrupt: fetch it again") from error


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Rejects huge tensors: with strides of 0 a few bytes describe a tensor of any size; a copy would allocate it."""
    limit = max(path.stat().st_size, UNPACKED_BYTES)
    for name, tensor in tensors.items():
        if tensor.numel() > limit:
            raise WeightsError(f"{path} holds {name} of {tensor.numel()} elements, more than its bytes: fetch it again")


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )


def _first(items: Sequence[str]) -> str:
    return ", ".join(items[:MAX_LISTED]) + (", ..." if len(items) > MAX_LISTED else "")
