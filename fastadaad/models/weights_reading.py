"""Reads weights files, including third-party files, without running any code in them."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastadaad.models.weights_checks import ZIP_MAGIC, check_safetensors, check_torch_save
from fastadaad.models.weights_names import (
    WRAPPERS,
    Checkpoint,
    Contents,
    SeveralNetworksError,
    by_our_names,
    narrowed,
    under_prefix,
    unwrap,
    without_prefixes,
)
from fastadaad.models.weights_pickles import ForbiddenCallError
from fastadaad.models.weights_values import HARMLESS
from fastadaad.runtime.text import InputError
from fastadaad.runtime.untrusted_files import UNPACKED_BYTES, is_web_page

# Tensors that a file may lack: the counters are unused with a fixed momentum; only fastadaad's models have a Normalize.
OPTIONAL = re.compile(r"(.*\.)?num_batches_tracked|normalize\.(mean|std)")
MAX_LISTED = 3
GZIP_MAGIC = b"\x1f\x8b"
PICKLE_MAGIC = b"\x80\x02"  # of torch.save before torch 1.6
TAR_MAGIC, TAR_MAGIC_AT = b"ustar", 257


class WeightsError(InputError):
    """A weights file that cannot be read, or that does not fit the network."""


def load_weights(model: nn.Module, path: str | os.PathLike[str], *, prefix: str | None = None) -> None:
    """Copies the weights of a file into `model`: all of them, or none if something does not fit.

    Strict, with one exception: batch-norm counters and the normalisation may be missing in the file; `model` then keeps
    its own.

    Args:
        model: Network to change.
        path: Weights file (.safetensors, .pt, .pth or .ckpt), with or without module prefixes and nesting.
        prefix: Prefix or entry of the network in a file of several, such as "student". Default: its only network.

    Raises:
        WeightsError: The file cannot be read or holds several networks, or tensors are missing, unexpected or of wrong
            shape.
    """
    names = {without_prefixes(name): name for name in model.state_dict()}
    expected = {name: model.state_dict()[own] for name, own in names.items()}
    checkpoint = read_checkpoint(path, prefix, expected)
    found = checkpoint.weights
    problems = misfits(found, expected)
    if problems:
        choice = f", or give prefix={checkpoint.prefixes[0]!r}" if checkpoint.prefixes else ""
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {problems}: check the model's name, num_classes, "
            f"in_channels{choice}"
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
    return "; ".join(f"{len(items)} {kind} ({first_of(items)})" for kind, items in problems.items() if items)


def read_state_dict(path: str | os.PathLike[str], *, prefix: str | None = None) -> dict[str, Tensor]:
    """Reads the weights of a file under fastadaad's names.

    Args:
        path: Weights file (.safetensors, .pt, .pth or .ckpt), with or without module prefixes and nesting.
        prefix: Prefix or entry of the network in a file of several, such as "student". Default: its only network.

    Returns:
        Parameter name -> tensor on the CPU.

    Raises:
        WeightsError: The file cannot be read, holds no state dict or more than one network, or could run code.
    """
    return read_checkpoint(path, prefix).weights


def check_is_file(path: Path) -> None:
    """Raises WeightsError if `path` is a folder or does not exist."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {what}: give a .safetensors, .pt or .pth file")


def read_checkpoint(
    path: str | os.PathLike[str], prefix: str | None = None, expected: Mapping[str, Tensor] | None = None
) -> Checkpoint:
    """Reads weights as read_state_dict does, with what lies around them in the file (weights_names.py).

    Args:
        path: Weights file.
        prefix: Prefix or entry of the network in a file of several. Default: its only network.
        expected: Tensors of the network to fill: prefixes are removed until the names and shapes fit.

    Returns:
        The weights, their nesting, and the names that were left out.

    Raises:
        WeightsError: The file cannot be read, holds no state dict or more than one network, or could run code.
    """
    path = Path(path)
    contents, prefix = _read_contents(path, prefix)
    tensors = contents.tensors
    if prefix is not None:
        try:
            tensors = under_prefix(tensors, prefix)
        except ValueError as error:
            raise WeightsError(f"{path} has no network under prefix={prefix!r}: {error}") from error
    try:
        state, checkpoint = _only_network(tensors, prefix, expected)
    except SeveralNetworksError as error:
        first = error.prefixes[0]
        raise WeightsError(
            f"{path} holds several networks ({error}): choose one with prefix={first!r}, or write it to a file of its "
            f"own with fastadaad export --prefix {first}"
        ) from error
    except ValueError as error:
        raise WeightsError(f"{path} holds more than one network ({error}): save one alone") from error
    used = set(map(id, state.values()))
    others = [name for name, tensor in contents.tensors.items() if id(tensor) not in used]
    return replace(checkpoint, entry=contents.entry, beside=contents.beside, unused=(*checkpoint.unused, *others))


def _only_network(
    tensors: Mapping[str, Tensor], prefix: str | None, expected: Mapping[str, Tensor] | None
) -> tuple[Mapping[str, Tensor], Checkpoint]:
    """Returns the first of the narrowed state dicts that fits `expected`, or the last, and its weights."""
    state = tensors
    for state in narrowed(tensors, prefix):
        if expected is not None:
            with suppress(ValueError):
                checkpoint = by_our_names(state)
                if not misfits(checkpoint.weights, expected):
                    return state, checkpoint
    return state, by_our_names(state)


def _read_contents(path: Path, prefix: str | None) -> tuple[Contents, str | None]:
    """Returns the state dict of a file, and the prefix unless an entry of the file has this name."""
    check_is_file(path)
    if is_web_page(path):
        raise WeightsError(f"{path} is a web page, not weights: fetch the file itself, not the page about it")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_torch_save(path)
    try:
        contents, prefix = unwrap(content, prefix)
    except ValueError as error:
        raise WeightsError(f"{path} has a wrong normalisation ({error}): save model.state_dict() alone") from error
    if contents is None:
        raise WeightsError(
            f"{path} holds no state dict, neither directly nor under {', '.join(WRAPPERS)}: save model.state_dict()"
        )
    _check_tensors(path, contents.tensors)
    return contents, prefix


def _is_safetensors(path: Path) -> bool:
    """Determines the format by the first bytes; by the suffix if they are of no known format.

    Raises:
        WeightsError: The file is a tar archive or compressed.
    """
    with path.open("rb") as file:
        start = file.read(TAR_MAGIC_AT + len(TAR_MAGIC))
    if start.startswith(GZIP_MAGIC):
        raise WeightsError(f"{path} is compressed by gzip: unpack it with gunzip, and give the file that results")
    if start.startswith(ZIP_MAGIC):
        return False
    if start[TAR_MAGIC_AT:] == TAR_MAGIC:
        raise WeightsError(
            f"{path} is a tar archive: unpack it and give the weights file in it; if torch before 0.1.10 wrote it, "
            "load and save it again with that torch"
        )
    return start[8:9] == b"{" or (path.suffix.lower() == ".safetensors" and not start.startswith(PICKLE_MAGIC))


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
        # An open file, as torch reads a path of the name *.safetensors in another way.
        with torch.serialization.safe_globals(HARMLESS), path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
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


def first_of(items: Sequence[str], limit: int = MAX_LISTED) -> str:
    """Returns the first items in one line."""
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")
