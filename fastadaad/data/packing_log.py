"""What has been packed so far: a file that only grows, so that a process may end at any moment and another go on.

Its first line is the origin of the pack, each other one a chunk of images that are in their file already. What a
process that was killed has left behind the last whole chunk is cut off.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fastadaad.data.dataset import DataError
from fastadaad.data.packed import LOG, SPLITS, SUMMARY, Origin, images_path
from fastadaad.data.statistics import count_values


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Files of one split that follow each other, and what became of them."""

    split: str
    num_files: int
    num_images: int
    sha256: str
    """Of their images."""
    counts: list[list[int]]
    """How often each value occurs in each channel."""
    skipped: dict[str, str]
    """Files that could not be decoded and why."""


class PackingLog:
    """The log in `folder`; `chunks` are those that are packed."""

    def __init__(self, folder: Path, file: BinaryIO, chunks: list[Chunk]) -> None:
        self.folder, self._file, self.chunks = folder, file, chunks

    def of(self, split: str) -> list[Chunk]:
        return [chunk for chunk in self.chunks if chunk.split == split]

    def num_files(self, split: str) -> int:
        """Packed or skipped so far."""
        return sum(chunk.num_files for chunk in self.of(split))

    def append(self, split: str, num_files: int, images: np.ndarray, skipped: dict[str, str]) -> None:
        """Add the images uint8 [M, S, S, 3] of the next `num_files` files of a split."""
        content = images.tobytes()
        with open(images_path(self.folder, split), "ab") as file:
            _write(file, content)
        chunk = Chunk(
            split=split,
            num_files=num_files,
            num_images=len(images),
            sha256=hashlib.sha256(content).hexdigest(),
            counts=count_values(torch.from_numpy(images)).tolist(),
            skipped=skipped,
        )
        # After the images, so that a chunk of which only a part reached the disk is in no line.
        _write(self._file, json.dumps(asdict(chunk)).encode() + b"\n")
        self.chunks.append(chunk)


@contextmanager
def packing_log(folder: Path, origin: Origin) -> Iterator[PackingLog]:
    """The log for a pack of `origin`, begun or gone on with; no other process gets it meanwhile.

    Raises DataError where another process has it, or where it was begun with another origin.
    """
    with open(folder / LOG, "a+b") as file:
        _lock(file, folder)
        file.seek(0)
        first, *others = file.read().split(b"\n")
        chunks: list[Chunk] = []
        if others:
            origin.check_same(json.loads(first), folder)
            chunks, size = _whole_chunks(folder, others[:-1], origin.image_bytes)
            file.truncate(len(first) + 1 + size)
        else:  # not even the first line is whole
            file.truncate(0)
            _write(file, json.dumps(asdict(origin)).encode() + b"\n")
        for split in SPLITS:
            num_images = sum(chunk.num_images for chunk in chunks if chunk.split == split)
            with open(images_path(folder, split), "ab") as images:
                images.truncate(num_images * origin.image_bytes)
        yield PackingLog(folder, file, chunks)


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{folder} is being packed by another process: wait for it, or end it") from error
    if (folder / SUMMARY).exists():  # and its log deleted, just before this one was opened
        raise DataError(f"{folder} was finished by another process just now: run the command again")


def _whole_chunks(folder: Path, lines: list[bytes], image_bytes: int) -> tuple[list[Chunk], int]:
    """The chunks up to the first whose images are not all there, and how many bytes of the log they are."""
    chunks, size = [], 0
    room = {split: _size(images_path(folder, split)) for split in SPLITS}
    for line in lines:
        chunk = Chunk(**json.loads(line))
        room[chunk.split] -= chunk.num_images * image_bytes
        if room[chunk.split] < 0:
            break
        chunks.append(chunk)
        size += len(line) + 1
    return chunks, size


def _write(file: BinaryIO, content: bytes) -> None:
    """To the disk, not only to the system's memory."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
