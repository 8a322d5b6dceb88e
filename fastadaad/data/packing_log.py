"""What has been packed so far: a file that only grows, so that a process may end at any moment and another go on.

Its first line is the origin of the pack, each other one a chunk of images that are in their file already. What a
process that was killed has left behind the last whole chunk is cut off.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError
from fastadaad.data.datasets.packed import LOG, SPLITS, SUMMARY, Origin, images_path
from fastadaad.data.statistics import count_values

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Files of one split that follow each other, and what became of them."""

    num_files: int
    num_images: int
    sha256: str
    """Of their images."""
    skipped: dict[str, str]
    """Files that could not be decoded and why."""


class PackingLog:
    """What is packed in `folder`; `file`: its log, open and locked."""

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self.folder, self._file = folder, file
        self.chunks: dict[str, list[Chunk]] = {split: [] for split in SPLITS}
        self.counts = {split: torch.zeros(3, 256, dtype=torch.int64) for split in SPLITS}
        """How often each value occurs in each channel."""

    def num_files(self, split: str) -> int:
        """Packed or skipped so far."""
        return sum(chunk.num_files for chunk in self.chunks[split])

    def append(self, split: str, num_files: int, images: np.ndarray, skipped: dict[str, str]) -> None:
        """Add the images uint8 [M, S, S, 3] of the next `num_files` files of a split."""
        content = images.tobytes()
        with open(images_path(self.folder, split), "ab") as file:
            _write(file, content)
        sha256 = hashlib.sha256(content).hexdigest()
        chunk = Chunk(num_files=num_files, num_images=len(images), sha256=sha256, skipped=skipped)
        counts = count_values(torch.from_numpy(images))
        # After the images, so that a chunk of which only a part reached the disk is in no line.
        self._write_line({"split": split, "chunk": asdict(chunk), "counts": counts.tolist()})
        self._add(split, chunk, counts)

    def go_on(self, origin: Origin) -> None:
        """Read what is there, cut off what is not whole, and write the first line where there is none."""
        self._file.seek(0)
        lines = self._file.readlines()
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if lines:
            origin.check_same(self._parsed(lines[0], _table), self.folder)
            num_chunks = self._read_chunks(lines[1:], origin.image_bytes)
            self._file.truncate(sum(map(len, lines[: 1 + num_chunks])))
        else:
            self._file.truncate(0)
            self._write_line(asdict(origin))
        for split in SPLITS:
            num_images = sum(chunk.num_images for chunk in self.chunks[split])
            with open(images_path(self.folder, split), "ab") as file:
                file.truncate(num_images * origin.image_bytes)

    def _read_chunks(self, lines: list[bytes], image_bytes: int) -> int:
        """Take over those before the first whose images are not all there; how many they are."""
        room = {split: _size(images_path(self.folder, split)) for split in SPLITS}
        for number, line in enumerate(lines):
            split, chunk, counts = self._parsed(line, _chunk)
            room[split] -= chunk.num_images * image_bytes
            if room[split] < 0:
                return number
            self._add(split, chunk, counts)
        return len(lines)

    def _parsed(self, line: bytes, parse: Callable[[Any], Result]) -> Result:
        """What `parse` makes of a line's facts."""
        try:
            return parse(json.loads(line))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: nested too deep, or torch's
            raise DataError(f"{self.folder / LOG} is damaged: delete {self.folder} and begin anew") from error

    def _add(self, split: str, chunk: Chunk, counts: Tensor) -> None:
        self.chunks[split].append(chunk)
        self.counts[split] += counts

    def _write_line(self, facts: dict[str, object]) -> None:
        _write(self._file, json.dumps(facts).encode() + b"\n")


def _table(facts: Any) -> dict[str, Any]:
    """Raises TypeError where a line is something else."""
    if not isinstance(facts, dict):
        raise TypeError("it is no table")
    return facts


def _chunk(facts: dict[str, Any]) -> tuple[str, Chunk, Tensor]:
    """Split, chunk and counts of a line. Raises an exception for what append() did not write."""
    split, chunk, counts = facts["split"], Chunk(**facts["chunk"]), facts["counts"]
    numbers = [chunk.num_files, chunk.num_images, *(number for row in counts for number in row)]
    if split not in SPLITS or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{split} has a number that is none")
    return split, chunk, torch.tensor(counts).reshape(3, 256)


@contextmanager
def packing_log(folder: Path, origin: Origin) -> Iterator[PackingLog]:
    """The log for a pack of `origin`, begun or gone on with; no other process gets it meanwhile.

    Raises DataError where another process has it, or where it was begun with another origin.
    """
    with open(folder / LOG, "a+b") as file:
        _lock(file, folder)
        log = PackingLog(folder, file)
        log.go_on(origin)
        yield log


def _lock(file: BinaryIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{folder} is being packed by another process: wait for it, or end it") from error
    if (folder / SUMMARY).exists():  # and its log deleted, just before this one was opened
        raise DataError(f"{folder} was finished by another process just now: run the command again")


def _write(file: BinaryIO, content: bytes) -> None:
    """To the disk, not only to the system's memory."""
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
