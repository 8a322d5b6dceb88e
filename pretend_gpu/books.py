"""The books of the preloaded runtime, as ctypes sees them."""

import ctypes
import warnings

import torch

LIBRARY = ctypes.CDLL(None)  # what is preloaded comes first
LIBRARY.pretend_gpu_capture.restype = ctypes.c_long
LIBRARY.pretend_gpu_capture.argtypes = [ctypes.c_void_p]
LIBRARY.pretend_gpu_launch.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_long]
LIBRARY.pretend_gpu_transfer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
LIBRARY.pretend_gpu_broken_rule.restype = ctypes.c_char_p
LIBRARY.pretend_gpu_log.argtypes = [ctypes.c_char_p]
LIBRARY.cudaStreamSynchronize.argtypes = [ctypes.c_void_p]

NOW = -1  # number of an operation that no graph holds
SYNC_DEBUG_WARN, SYNC_DEBUG_ERROR = 1, 2


class Counts(ctypes.Structure):
    """Numbers of calls since the start of the process."""

    _fields_ = [
        (name, ctypes.c_long)
        for name in ("launches", "copies", "fills", "waits", "allocations", "captured", "broken_rules")
    ]


def counts() -> Counts:
    """Returns the counts so far."""
    found = Counts()
    LIBRARY.pretend_gpu_counts(ctypes.byref(found))
    return found


def check(error: int) -> None:
    """Raises RuntimeError with the rule that was broken, unless `error` is 0."""
    if error:
        LIBRARY.cudaGetLastError()
        raise RuntimeError(f"CUDA error: {LIBRARY.pretend_gpu_broken_rule().decode()}")


def current_stream(device: torch.device) -> int:
    """Returns the handle of this thread's current stream of the device."""
    return torch._C._cuda_getCurrentRawStream(torch.cuda.current_device() if device.index is None else device.index)


def wait(device: torch.device) -> None:
    """Lets the host wait for the current stream, as an operation does that reads a value on the host.

    Raises:
        RuntimeError: Waiting is an error, by torch.cuda.set_sync_debug_mode or in a capture.
    """
    debug_mode = torch.cuda.get_sync_debug_mode()
    if debug_mode == SYNC_DEBUG_ERROR:
        raise RuntimeError("called a synchronizing CUDA operation")
    if debug_mode == SYNC_DEBUG_WARN:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=2)
    check(LIBRARY.cudaStreamSynchronize(current_stream(device)))
