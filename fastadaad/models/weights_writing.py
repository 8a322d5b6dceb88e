"""Writes weights as safetensors, with facts about them in the header of the file."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as serialize
from torch import Tensor, nn

from fastadaad.runtime.files import write_atomically

# The only header entry that is written. safetensors writes several entries in a random order, and the same run must
# give the same bytes.
ENTRY = "fastadaad"


def save_weights(path: Path, model: nn.Module, **facts: object) -> None:
    """Writes the state dict of `model` to `path`, with `facts` as JSON in the header."""
    save_tensors(path, model.state_dict(), **facts)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: object) -> None:
    """Writes `tensors` to `path` atomically, with `facts` as JSON in the header."""
    write_atomically(path, serialized(tensors, **facts))


def serialized(tensors: Mapping[str, Tensor], **facts: object) -> bytes:
    """Returns the bytes of a safetensors file with `tensors`, and with `facts` as JSON in the header."""
    # safetensors refuses channels-last tensors; contiguous() copies only those.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return serialize(state, metadata={ENTRY: json.dumps(facts)})
