"""Memory of this process: peak growth of what is resident, and bytes of tensors."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch


def status_bytes(name: str) -> int:
    """Value of a field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def resident_growth(run: Callable[[], object]) -> int:
    """Peak growth of this process's resident memory during the call, in bytes; Linux only."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak to what is resident now
    before = status_bytes("VmRSS")
    run()
    return status_bytes("VmHWM") - before


def tensor_bytes() -> int:
    """Bytes of all CPU tensors of this process; each storage is counted once."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    # torch.func leaves wrappers behind that own no memory.
    plain = [tensor for tensor in tensors if not torch._C._functorch.is_functorch_wrapped_tensor(tensor)]
    storages = [tensor.untyped_storage() for tensor in plain if tensor.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
