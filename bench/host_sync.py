"""Detects host syncs without a GPU: operators that would make the host wait for the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Operators that return a Python number, or a tensor whose shape depends on values.
WAITING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.unique_dim,
    aten.repeat_interleave,
}


class HostSyncWatch(TorchDispatchMode):
    """Context manager that records operators which would cause a host sync in `seen`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indexing = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
        if func.overloadpacket in WAITING or (indexing and any(map(_is_mask, args[1]))):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
