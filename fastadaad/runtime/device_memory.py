"""Peak memory of a CUDA device."""

import torch

# Pool of torch's allocator for everything that no CUDA graph owns.
_COMMON_POOL = (0, 0)


def peak_memory(device: torch.device) -> str | None:
    """Describes the largest memory that torch has reserved on `device`; None on devices other than CUDA.

    Reserved memory is what other programs cannot have; tensors occupy part of it.
    """
    if device.type != "cuda":
        return None
    text = f"{torch.cuda.max_memory_reserved(device) / 2**20:,.0f} MiB reserved on {device}"
    captured = captured_bytes(device)
    return f"{text}, {captured / 2**20:,.0f} MiB of them by captured CUDA graphs" if captured else text


def captured_bytes(device: torch.device) -> int:
    """Bytes on `device` that CUDA graphs hold at present: their private pools, which a replay needs."""
    return sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == device.index and tuple(segment["segment_pool_id"]) != _COMMON_POOL
    )
