"""Weights files, one's own and other people's, read without running any code that they may carry."""

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
from fastadaad.runtime.file_limits import UNPACKED_BYTES
from fastadaad.runtime.text import InputError

# What a file may lack: the counters are unused with a fixed momentum, and only fastadaad's models carry a Normalize.
OPTIONAL = re.compile(r"(.*\.)?num_batches_tracked|normalize\.(mean|std)")
MAX_LISTED = 3
NUMBER_TYPE = re.compile("b1|[iuf](1|2|4|8)")


class _NumberType:
    """In place of numpy's dtype, which may be of any size, and crashes when it is built from a state of wrong form."""

    def __init__(self, code: str, *flags: bool) -> None:
        if not NUMBER_TYPE.fullmatch(code):
            raise ValueError(f"it holds a number of numpy's type {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> np.generic:
    """In place of numpy's function."""
    return np.frombuffer(content, kind.dtype)[0]


# Plain values that training programs save beside the weights: their command line, and accuracies as numpy numbers.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),  # before numpy 2
    (_number, "numpy._core.multiarray.scalar"),
]


class WeightsError(InputError):
    """A weights file that cannot be read, or that does not fit the network."""


def load_weights(model: nn.Module, path: str | os.PathLike) -> None:
    """Copies the weights in a file into `model`, all of them or none. Raises WeightsError.

    Strict, except that a file without batch-norm counters or normalisation leaves those of `model` as they are.
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
    """What of `found` does not fit `expected`: missing, unexpected, of wrong shape; empty where everything does."""
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


def read_state_dict(path: str | os.PathLike) -> dict[str, Tensor]:
    """The weights in a .safetensors or torch.save file by our names, on the CPU. Raises WeightsError."""
    return read_checkpoint(path).weights


def check_is_file(path: Path) -> None:
    """Raises WeightsError where there is no file of that name."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}: give a .safetensors, .pt or .pth file")


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """As read_state_dict, with what is known about where they were. See checkpoint_names.py for what it understands."""
    from fastadaad.runtime.file_checks import is_web_page

    path = Path(path)
    check_is_file(path)
    if is_web_page(path):
        raise WeightsError(f"{path} is a web page and no weights: fetch the file itself, not the page about it")
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
        raise WeightsError(f"{path} is no safetensors file or is corrupt ({reason}): fetch it again") from error


def _read_torch_save(path: Path) -> Any:
    """What torch.save wrote, restricted to tensors, plain containers and HARMLESS values."""
    try:
        check_torch_save(path)
        with torch.serialization.safe_globals(HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ForbiddenCallError as error:
        raise WeightsError(
            f"{path} is refused: it asks to call {error} while it is read, and so could run any code or fill the "
            "memory; save its state dict alone, best as .safetensors"
        ) from error
    except Exception as error:  # the bytes of a corrupt pickle can lead to any exception
        raise WeightsError(f"{path} is no torch.save file or is corrupt: fetch it again") from error


def _check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """By strides of 0 a few bytes can pass for a tensor of any size, which whoever copies it allocates."""
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
