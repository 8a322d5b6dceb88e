"""Writing weights: safetensors, atomically, with what made them in the header."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save as serialize
from torch import Tensor, nn

# The one entry of a file's header. safetensors writes several in a random order, and the same run must give the same
# bytes.
ENTRY = "fastadaad"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a crash, meets the old file or the new one and nothing between."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # of several processes each has its own
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Delete what processes that were killed while they wrote to `folder` have left."""
    for path in folder.glob("*.tmp"):
        with suppress(OSError):  # a folder that cannot be written to keeps them
            path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a renaming in `folder` last over a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_weights(path: Path, model: nn.Module, **facts: object) -> None:
    """Write the state dict of `model` to `path`; `facts` go into the file's header as JSON."""
    save_tensors(path, model.state_dict(), **facts)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **facts: object) -> None:
    """Write `tensors` to `path`; `facts` go into the file's header as JSON."""
    write_atomically(path, serialized(tensors, **facts))


def serialized(tensors: Mapping[str, Tensor], **facts: object) -> bytes:
    """The content of a file with `tensors`, and with `facts` in its header as JSON."""
    # safetensors refuses channels-last tensors; contiguous() copies only those.
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return serialize(state, metadata={ENTRY: json.dumps(facts)})
