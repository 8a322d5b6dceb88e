"""Freed host memory that stays in the process.

glibc gives large blocks back to the system when they are freed. A training step on the CPU allocates the same blocks
again, and the system must fill every page of them with zeros first.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
NEVER_TRIMMED, LARGEST_BLOCK = -1, 2**31 - 1


def keep_freed_memory() -> bool:
    """Lets malloc keep the memory that is freed, for the whole process.

    Blocks of less than 2 GiB then come from memory that was used before, if there is enough. The process holds its
    peak memory to its end.

    Returns:
        True if malloc took the settings. False without glibc, or if the environment sets malloc (MALLOC_... or
        GLIBC_TUNABLES): nothing changes.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER_TRIMMED))
