"""Tensors of the CPU over the memory of CUDA tensors, which is memory of the host."""

import ctypes

import torch
from torch import Tensor

NAN_BYTE = 0xFF  # a number of these bytes is NaN in every float type


def on_cpu(tensor: Tensor) -> Tensor:
    """Returns a tensor of the CPU over the memory of a CUDA tensor; it keeps nothing alive."""
    storage = tensor.untyped_storage()
    num_bytes = storage.nbytes()
    if num_bytes == 0 or tensor.numel() == 0:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * num_bytes).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=torch.uint8)
    view = torch.empty(0, dtype=tensor.dtype)
    view.set_(flat.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
    return view.conj() if tensor.is_conj() else view


def bytes_of(tensor: Tensor) -> tuple[int, int]:
    """Returns the address and the number of bytes that a tensor spans."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def fill_with_nan(tensor: Tensor) -> None:
    """Fills the memory of a CPU tensor with the bytes of NaN."""
    address, num_bytes = bytes_of(tensor)
    ctypes.memset(address, NAN_BYTE, num_bytes)
