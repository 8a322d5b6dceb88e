"""What a file of a stranger may ask for before anything is allocated for it, and why so much.

What is read whole is checked against the size of the file; only what unpacks, or describes more than it holds, needs
a number.
"""

import os
import stat

MIB = 2**20

CONFIG_BYTES = MIB
"""A configuration as JSON: those of the recipes have 2 kB."""
SUMMARY_BYTES = 32 * MIB
"""pack.json: about 100 bytes for 16 MiB of images, and the name of each file that was left out."""
TEXT_BYTES = 4 * MIB
"""Lists of names and labels: the longest of Tiny-ImageNet has 10,000 lines."""
SAFETENSORS_HEADER_BYTES = 16 * MIB
"""About 100 bytes for each tensor; the library itself stops at 100 MB."""
NPY_HEADER_BYTES = 10_000
"""As much as numpy parses."""
UNPACKED_BYTES = 64 * MIB
"""To so much any file may unpack."""
UNPACKED_RATIO = 100
"""A larger one to so many times its size; zeros alone reach 1,032 times."""
VALUES = 2**20
"""So many any pickle may go over, and one of more operations UNPACKED_RATIO times as many as it has."""
IMAGE_PIXELS = 89_478_485
"""Width times height of one image: from here on Pillow warns of a bomb."""
IMAGE_BYTES = 512 * MIB
"""The file of one image: so many pixels of three times 16 bits, unpacked."""
JPEG_SCANS = 100
"""Of one image: each goes over all of its pixels and takes 31 bytes of the file; progressive images have about ten."""
MODEL_PARAMETERS = 2**30
"""Of a network whose name has its size; wrn-70-16 has 267 million."""
NESTED_FOLDERS = 8
"""Below the folder of a class; a link that leads back up is deeper than any number."""
NESTED_WRAPPERS = 8
"""Entries around a state dict; a dict that holds itself is deeper than any number."""


def size_of(path: str | os.PathLike) -> int:
    """Bytes of the file `path`. Raises ValueError where it is a folder, or a pipe or device, which may have no end."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file, but a folder, a pipe or a device")
    return found.st_size


def check_size(path: str | os.PathLike, limit: int) -> None:
    """Raises ValueError where the file `path` has more than `limit` bytes, or is none."""
    size = size_of(path)
    if size > limit:
        raise ValueError(f"it has {size} bytes and at most {limit} are read")


def check_unpacked(path: str | os.PathLike, unpacked: int) -> None:
    """Raises ValueError where `unpacked` bytes are more than the file `path` may unpack to."""
    size = os.stat(path).st_size
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * size):
        raise ValueError(f"its {size} bytes are to unpack to {unpacked}")
