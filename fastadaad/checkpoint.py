"""Writing weights: safetensors, atomically, with what made them in the header."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save as serialize
from torch import Tensor, nn


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, meets the old file or the new one and nothing between."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, model: nn.Module, **facts: object) -> None:
    """Write the state dict of `model` to `path`; `facts` go into the file's header as JSON."""
    save_tensors(path, model.state_dict(), **facts)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: object) -> None:
    """Write `tensors` to `path`; `facts` go into the file's header as JSON."""
    # safetensors refuses channels-last tensors; contiguous() copies only those.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in a random order, and the same run must give the same bytes.
    write_atomically(path, serialize(state, metadata={"fastadaad": json.dumps(facts)}))
