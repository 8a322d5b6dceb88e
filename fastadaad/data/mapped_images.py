"""Images in a memory-mapped file, and read-ahead of the images of the next batch.

By default Linux reads 128 KiB around each missing page. If images are visited in a random order, most of these bytes
are not needed, and if memory is smaller than the file they evict pages that the next batches need.
"""

import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

# Python names it from 3.13 on; other systems do not need it.
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0

# By first address. The storage of a tensor holds its map, so an entry ends with the last tensor of its file.
_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


def map_images(path: Path, image_shape: tuple[int, int, int]) -> Tensor:
    """Maps a file of raw pixels as uint8 [M, H, W, C]; changes of the tensor do not reach the file."""
    # Private and writable, as torch has no read-only tensors. Without NORESERVE, as in np.memmap's mode "c", Linux
    # counts the whole map as memory that may be needed, and refuses a map larger than memory.
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    images = torch.frombuffer(mapped, dtype=torch.uint8).view(-1, *image_shape)
    _maps[images.data_ptr()] = mapped
    return images


def is_mapped(images: Tensor) -> bool:
    """Returns True for contiguous images from map_images, or a slice of them, if the system takes advice on maps."""
    return hasattr(mmap.mmap, "madvise") and images.is_contiguous() and _first_address(images) in _maps


def read_ahead(images: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yields the `batches` of indices int64 [B] into mapped `images`; the disk reads the next batch meanwhile."""
    if not batches:
        return
    mapped = _maps[_first_address(images)]
    with suppress(OSError):  # advice that the system refuses changes no pixel
        mapped.madvise(mmap.MADV_RANDOM)
    _read(mapped, images, batches[0])
    for batch, following in zip_longest(batches, batches[1:]):
        if following is not None:
            _read(mapped, images, following)
        yield batch


def _first_address(images: Tensor) -> int:
    return images.untyped_storage().data_ptr()


def _read(mapped: mmap.mmap, images: Tensor, indices: Tensor) -> None:
    """Starts reading the pages of these images and does not wait for them."""
    image_bytes = images.nbytes // len(images)
    first_byte = images.data_ptr() - _first_address(images)
    for index in indices.tolist():
        start = first_byte + index * image_bytes
        page = start - start % mmap.PAGESIZE
        with suppress(OSError):
            mapped.madvise(mmap.MADV_WILLNEED, page, start + image_bytes - page)
