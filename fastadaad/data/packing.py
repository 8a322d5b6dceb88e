"""Writer of packs: decodes and resizes each image file once; datasets/packed.py describes and reads the result.

Chunks of images are appended to the image files, and packing.json, the journal, is replaced after each chunk, once the
chunk is on the disk. So a process may be killed at any time: the next one cuts off what the journal does not list and
continues from there.
"""

import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, ImageFiles, Images
from fastadaad.data.datasets.packed import (
    JOURNAL,
    SPLITS,
    SUMMARY,
    Origin,
    Pack,
    PackedSplit,
    images_path,
    labels_path,
    parsed,
    read_pack,
    remedy,
    splits_of,
)
from fastadaad.data.image_decoding import REMEDY, decode_resized
from fastadaad.data.rank_agreement import dataset_digest
from fastadaad.data.statistics import count_values, statistics_of_counts
from fastadaad.runtime.files import remove_temporaries, write_atomically
from fastadaad.runtime.locks import locked
from fastadaad.runtime.progress import image_progress

# Bytes of a chunk. About four chunks are in memory, and up to two are decoded again after an interruption.
CHUNK_BYTES = 2**24
RESUME = "run the command again to resume"

Decoded = tuple[str, Tensor | str]
"""Name of a file, and its image uint8 [S, S, 3] or the reason why it cannot be decoded."""


class Journal:
    """Chunks that an unfinished pack in `folder` holds."""

    def __init__(self, folder: Path, origin: Origin) -> None:
        self.folder, self.origin = folder, origin
        self.splits = {split: PackedSplit() for split in SPLITS}
        self.counts = torch.zeros(3, 256, dtype=torch.int64)
        """Occurrences of each value in each channel of the training images."""

    def append(self, split: str, chunk: Sequence[Decoded]) -> None:
        """Writes the images of the next files of a split, then lists them."""
        skipped = {name: reason for name, reason in chunk if isinstance(reason, str)}
        images = [image for _, image in chunk if isinstance(image, Tensor)]
        content = b"".join(image.numpy().tobytes() for image in images)
        with images_path(self.folder, split).open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        before = self.splits[split]
        self.splits[split] = replace(
            before,
            num_images=before.num_images + len(images),
            chunk_images=[*before.chunk_images, len(images)],
            chunk_sha256=[*before.chunk_sha256, hashlib.sha256(content).hexdigest()],
            skipped=before.skipped | skipped,
        )
        if split == "train" and images:
            self.counts += count_values(torch.stack(images))
        self._save()

    def begin_or_resume(self) -> None:
        """Continues the pack in the folder, or begins one in an empty folder."""
        if not (self.folder / JOURNAL).exists():
            if any(not path.name.startswith(JOURNAL) for path in self.folder.iterdir()):
                raise DataError(f"{self.folder} holds something else: give another OUT")
            self._save()
        found, self.splits, self.counts = parsed(self.folder / JOURNAL, _parse)
        self.origin.check_same(found, self.folder)
        remove_temporaries(self.folder)
        for split, packed in self.splits.items():
            with images_path(self.folder, split).open("ab") as file:
                num_bytes = packed.num_images * self.origin.image_bytes
                if file.tell() < num_bytes:
                    raise DataError(f"{file.name} has lost images: {remedy(self.folder)}")
                file.truncate(num_bytes)

    def _save(self) -> None:
        splits = {split: asdict(packed) for split, packed in self.splits.items()}
        facts = {"origin": asdict(self.origin), "splits": splits, "counts": self.counts.tolist()}
        write_atomically(self.folder / JOURNAL, json.dumps(facts).encode())


def _parse(facts: Any) -> tuple[Origin, dict[str, PackedSplit], Tensor]:
    """Parses packing.json."""
    origin, splits = Origin(**facts["origin"]), splits_of(facts)
    counts = torch.tensor(facts["counts"], dtype=torch.int64)
    if counts.shape != (3, 256) or counts.sum(1).tolist() != 3 * [splits["train"].num_images * origin.image_size**2]:
        raise ValueError("counts are not those of the images")
    return origin, splits, counts


def pack(dataset: Dataset, folder: Path, *, num_workers: int, console: Console) -> Pack:
    """Packs image files into `folder`, or resumes a pack that was begun there.

    Args:
        dataset: Data set of ImageFiles.
        folder: New, empty, or written by an earlier call with the same files and sizes.
        num_workers: Number of threads that decode.
        console: Console for the progress bar.

    Returns:
        The contents of pack.json.

    Raises:
        DataError: If a file cannot be decoded and on_error is "raise", if `folder` holds anything else, or if the disk
            is full. Chunks that were packed before stay.
    """
    splits = {"train": _files(dataset.train_images), "test": _files(dataset.test_images)}
    files = splits["train"]
    origin = Origin(image_size=files.image_size, center_share=files.center_share, files_sha256=dataset_digest(dataset))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as own:
            if not own:
                raise DataError(f"{folder} is being packed by another process: wait for it, or end it")
            if (folder / SUMMARY).exists():
                return _finished(folder, origin, console)
            journal = Journal(folder, origin)
            journal.begin_or_resume()
            _check_room(splits, journal)
            _pack_images(splits, journal, num_workers, console)
            return _finish(splits, journal, dataset)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"{place} cannot be written ({error.strerror}): make it possible, then {RESUME}") from error


def _files(images: Images) -> ImageFiles:
    assert isinstance(images, ImageFiles)
    return images


def _finished(folder: Path, origin: Origin, console: Console) -> Pack:
    found = read_pack(folder)
    origin.check_same(found.origin, folder)
    (folder / JOURNAL).unlink(missing_ok=True)  # left by a process that was killed between its last two steps
    console.print(f"{folder} is complete already", markup=False, soft_wrap=True)
    return found


def _check_room(splits: dict[str, ImageFiles], journal: Journal) -> None:
    num_missing = sum(len(files) - journal.splits[split].num_files for split, files in splits.items())
    missing, free = num_missing * journal.origin.image_bytes, shutil.disk_usage(journal.folder).free
    if missing > free:
        raise DataError(
            f"{journal.folder} needs {missing / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB: make room and "
            f"{RESUME}, or give another OUT or a smaller --image-size"
        )


def _pack_images(splits: dict[str, ImageFiles], journal: Journal, num_workers: int, console: Console) -> None:
    """Appends all chunks that the journal lacks."""
    pool = ThreadPoolExecutor(num_workers)
    try:
        with image_progress(console, f"packing {journal.folder.name}", sum(map(len, splits.values()))) as progress:
            with progress.clock_stopped():
                progress.advance(sum(packed.num_files for packed in journal.splits.values()))
            for split, files in splits.items():
                for chunk in _chunks(files, journal.splits[split].num_files, pool):
                    journal.append(split, chunk)
                    progress.advance(len(chunk))
    finally:
        pool.shutdown(cancel_futures=True)  # after an interruption, do not decode the chunk ahead


def _chunks(files: ImageFiles, start: int, pool: Executor) -> Iterator[list[Decoded]]:
    """Yields the decoded files of each chunk from file `start` on; the next chunk is decoded meanwhile."""
    step = max(1, CHUNK_BYTES // (3 * files.image_size**2))
    ahead: deque[Iterator[Decoded]] = deque()
    for first in range(start, len(files), step):
        ahead.append(pool.map(partial(_decoded, files), range(first, min(first + step, len(files)))))
        if len(ahead) == 2:
            yield list(ahead.popleft())
    yield from map(list, ahead)


def _decoded(files: ImageFiles, index: int) -> Decoded:
    try:
        return files.names[index], decode_resized(files, index)
    except DataError as error:
        reason = str(error).removesuffix(f": {REMEDY}")
        if files.on_error == "skip":
            return files.names[index], reason
        action = "replace it, or add --skip-errors to leave such files out"
        raise DataError(f"{reason}: {action}; then {RESUME}") from error


def _finish(splits: dict[str, ImageFiles], journal: Journal, dataset: Dataset) -> Pack:
    """Writes the labels, then pack.json, which completes the pack."""
    labels = {"train": dataset.train_labels, "test": dataset.test_labels}
    packed = {split: _with_labels(journal, split, splits[split], labels[split]) for split in SPLITS}
    mean, std = statistics_of_counts(journal.counts)
    result = Pack(origin=journal.origin, class_names=dataset.class_names, mean=mean, std=std, splits=packed)
    write_atomically(journal.folder / SUMMARY, result.to_json())
    (journal.folder / JOURNAL).unlink()
    return result


def _with_labels(journal: Journal, split: str, files: ImageFiles, labels: Tensor) -> PackedSplit:
    """Writes the labels of the packed images and adds their checksum."""
    packed = journal.splits[split]
    if packed.num_images == 0:
        reason = next(iter(packed.skipped.values()))
        raise DataError(f"{files.root} holds no image that can be decoded: {reason}")
    content = io.BytesIO()
    np.save(content, labels[torch.tensor([name not in packed.skipped for name in files.names])].numpy())
    write_atomically(labels_path(journal.folder, split), content.getvalue())
    return replace(packed, labels_sha256=hashlib.sha256(content.getvalue()).hexdigest())
