"""Images in a memory map: those of a batch are asked of the disk while the batch before it is worked on.

Left to itself, Linux reads 128 KiB around every page that is missing. Where images are visited in a random order, most
of that is for nothing, and in less memory than the map is large it throws out what the next batches need.
"""

import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from torch import Tensor

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def read_ahead(images: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The `batches` of indices int64 [B] into mapped `images` as they are, of which the next is read meanwhile."""
    if not batches:
        return
    _advise(images.data_ptr(), images.nbytes, mmap.MADV_RANDOM)
    _read(images, batches[0])
    for batch, following in zip_longest(batches, batches[1:]):
        if following is not None:
            _read(images, following)
        yield batch


def is_mapped(images: Tensor) -> bool:
    """Whether `images` lie in a file that is mapped into memory, image behind image; only Linux is asked."""
    if sys.platform != "linux" or images.device.type != "cpu" or not images.is_contiguous():
        return False
    address = images.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        first, end = (int(number, 16) for number in addresses.split("-"))
        if first <= address < end:
            return inode != "0"
    return False


def _read(images: Tensor, indices: Tensor) -> None:
    """Begin to read these images, without waiting for them."""
    image_bytes = images.nbytes // len(images)
    for index in indices.tolist():
        _advise(images.data_ptr() + index * image_bytes, image_bytes, mmap.MADV_WILLNEED)


def _advise(address: int, num_bytes: int, advice: int) -> None:
    """Of all pages that hold one of the bytes. Advice that the system cannot take changes no pixel: no error."""
    first = address - address % mmap.PAGESIZE
    _libc.madvise(first, address + num_bytes - first, advice)
