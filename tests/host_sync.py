"""Detection, without a GPU, of operations that would make the host wait for one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Their result is a Python number, or a tensor whose shape depends on values.
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


class ForbidHostSync(TorchDispatchMode):
    """A context in which such an operation raises AssertionError."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in WAITING, f"{func} makes the host wait"
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} with a mask makes the host wait"
        return func(*args, **(kwargs or {}))
