"""Checks of an untrusted weights file, before it allocates memory or calls anything.

safetensors itself compares shapes and offsets with the size of the file, and torch compares the storages of an archive
with its members. This module does the other checks, those of pickles with weights_pickles.py.
"""

import io
import mmap
import struct
import zipfile
from pathlib import Path

from fastadaad.models.weights_pickles import check_pickle
from fastadaad.runtime.untrusted_files import SAFETENSORS_HEADER_BYTES, TENSORS, size_of

ZIP_MAGIC = b"PK\x03\x04"  # torch.load distinguishes an archive from the format before torch 1.6 by it
NUM_PICKLES = 5  # in that format: magic number, version, machine, content, names of the storages


def check_safetensors(path: Path) -> None:
    """Raises ValueError if `path` is no file, or its header exceeds the file, SAFETENSORS_HEADER_BYTES or TENSORS."""
    size = size_of(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length > min(size - 8, SAFETENSORS_HEADER_BYTES):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        num_tensors = file.read(length).count(b'"data_offsets"')
    if num_tensors > TENSORS:
        raise ValueError(f"it names {num_tensors} tensors and at most {TENSORS} are read")


def check_torch_save(path: Path) -> None:
    """Raises ForbiddenCallError, or any other exception if torch.save did not write the file."""
    with open(path, "rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_archive:
        _check_archive(path)
    else:
        _check_old_format(path)


def _check_archive(path: Path) -> None:
    """Checks the directory of a zip archive: torch allocates the sizes in it, and unpacks compressed members."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, which torch.save never does")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members are larger than the file")
        if min(member.header_offset for member in members) != 0:
            raise ValueError("it does not begin with its first member")  # there, torch looks for another directory
        for member in members:
            if member.filename.endswith(".pkl"):
                check_pickle(io.BytesIO(archive.read(member)), path.stat().st_size)


def _check_old_format(path: Path) -> None:
    """Checks the pickles: torch allocates storages by the numbers in them, before it reads the data."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(NUM_PICKLES):
            check_pickle(content, path.stat().st_size)  # type: ignore[arg-type]
