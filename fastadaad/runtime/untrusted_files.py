"""Checks of untrusted files: size limits before memory is allocated, web pages in place of data, one-line reasons.

A file that is read whole is checked against its own size. Only a file that unpacks, or describes more than it holds,
needs a limit.
"""

import hashlib
import os
import stat
from pathlib import Path

MIB = 2**20

CONFIG_BYTES = MIB
"""Size of a configuration as JSON; the recipes have 2 kB."""
SUMMARY_BYTES = 32 * MIB
"""Size of pack.json: about 100 bytes per 16 MiB of images, and the name of each file that was left out."""
TEXT_BYTES = 4 * MIB
"""Size of a list of names and labels; the longest one of Tiny-ImageNet has 10,000 lines."""
SAFETENSORS_HEADER_BYTES = 16 * MIB
"""Size of a safetensors header, about 100 bytes per tensor; the library's own limit is 100 MB."""
TENSORS = 2**16
"""Tensors of a weights file, or of a file with an optimizer's state; a network has some hundreds."""
NPY_HEADER_BYTES = 10_000
"""Size of a .npy header: numpy's own limit."""
UNPACKED_BYTES = 64 * MIB
"""Unpacked size that any file may have."""
UNPACKED_RATIO = 100
"""Ratio of unpacked to packed size that a larger file may have; a file of zeros reaches 1,032."""
VALUES = 2**20
"""Number of values that any pickle may hold. A pickle of more operations may hold UNPACKED_RATIO times their number."""
KEYS = 2**14
"""Keys of the dicts in a pickle that are neither texts nor small: hashes of numbers and tuples can be made to collide,
and then each new key is compared with all before it."""
SMALL_KEY = 2**20
"""Numbers below it are small keys, of which only a few can collide."""
IMAGE_PIXELS = 89_478_485
"""Width times height of one image; from here on Pillow warns of a decompression bomb."""
IMAGE_BYTES = 512 * MIB
"""Size of the file of one image: IMAGE_PIXELS of three times 16 bits, unpacked."""
JPEG_SCANS = 100
"""Scans of one JPEG; each passes over all pixels for 31 bytes of the file. Progressive images have about ten."""
MODEL_PARAMETERS = 2**30
"""Parameters of a network whose name holds its size; wrn-70-16 has 267 million."""
SMALL_PARAMETERS = 2**26
"""Parameters of a network that is built whatever the size of its file of weights: 256 MiB."""
NESTED_FOLDERS = 8
"""Levels below the folder of a class; a link that leads back up would be deeper than any number."""
NESTED_WRAPPERS = 8
"""Entries around a state dict; a dict that holds itself would be deeper than any number."""
NUM_START_BYTES = 256
"""Bytes from the start of a file that show its kind."""


def size_of(path: str | os.PathLike[str]) -> int:
    """Returns the size of a file in bytes.

    Raises:
        ValueError: `path` is a folder, or a pipe or device, which may have no end.
    """
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file, but a folder, a pipe or a device")
    return found.st_size


def check_size(path: str | os.PathLike[str], limit: int) -> None:
    """Raises ValueError if `path` has more than `limit` bytes, or is not a regular file."""
    size = size_of(path)
    if size > limit:
        raise ValueError(f"it has {size} bytes and at most {limit} are read")


def check_unpacked(path: str | os.PathLike[str], unpacked: int) -> None:
    """Raises ValueError if `unpacked` bytes are more than the file `path` may unpack to."""
    size = os.stat(path).st_size
    if unpacked > max(UNPACKED_BYTES, UNPACKED_RATIO * size):
        raise ValueError(f"its {size} bytes are to unpack to {unpacked}")


def check_sha256(path: Path, sha256: str) -> None:
    """Raises ValueError if a file has another sha256, which names it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    if digest.hexdigest() != sha256:
        raise ValueError(f"its sha256 is {digest.hexdigest()}, not {sha256}")


def start_of(path: Path) -> bytes:
    """Returns the first NUM_START_BYTES of a file."""
    with path.open("rb") as file:
        return file.read(NUM_START_BYTES)


def looks_like_html(start: bytes) -> bool:
    """Returns True if the first bytes of a file are those of a web page, which servers send in place of a file."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<head", b"<!--"))


def is_web_page(path: Path) -> bool:
    """Returns True if `path` is a file that holds a web page, whatever its name is."""
    return path.is_file() and looks_like_html(start_of(path))


def one_line(error: Exception) -> str:
    """Returns the message of an error in one line, or the type of an error without a message."""
    return " ".join(str(error).split()) or type(error).__name__
