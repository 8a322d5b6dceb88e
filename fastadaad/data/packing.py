"""Writing a pack: every image file is decoded and resized once, and from then on read as an array; see packed.py."""

import io
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, ImageFiles, Images
from fastadaad.data.datasets.packed import LOG, SPLITS, SUMMARY, Origin, Pack, PackedSplit, labels_path, read_pack
from fastadaad.data.image_decoding import REMEDY, decode_resized
from fastadaad.data.packing_log import PackingLog, packing_log
from fastadaad.data.rank_agreement import fingerprint
from fastadaad.data.statistics import statistics_of_counts
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.progress import ImageProgress, image_progress

# Of a chunk. About four of them are in memory, and up to two are decoded again after an interruption.
CHUNK_BYTES = 2**24
GO_ON = "run the command again, and it goes on where it stopped"


Decoded = Iterator[Tensor | str]
"""Of each file the image uint8 [S, S, 3], or what is wrong with it."""


class _Split(NamedTuple):
    images: ImageFiles
    labels: Tensor


def pack(dataset: Dataset, folder: Path, *, num_workers: int, console: Console) -> Pack:
    """Write the image files of `dataset` to `folder`, or go on with what was begun there; in `num_workers` threads.

    Raises DataError for a file that cannot be decoded, unless such are to be skipped, for a folder that holds anything
    else, and where the disk is full; the chunks that were packed before stay.
    """
    splits = {
        "train": _Split(_files(dataset.train_images), dataset.train_labels),
        "test": _Split(_files(dataset.test_images), dataset.test_labels),
    }
    files = splits["train"].images
    origin = Origin(image_size=files.image_size, center_share=files.center_share, files_sha256=fingerprint(dataset))
    if (folder / SUMMARY).exists():
        return _finished(folder, origin, console)
    try:
        _prepare(folder)
        with packing_log(folder, origin) as log:
            _check_room(splits, log, origin)
            _pack_images(splits, log, num_workers, console)
            return _finish(splits, log, origin, dataset.class_names)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"{place} cannot be written ({error.strerror}): make it possible, then {GO_ON}") from error


def _files(images: Images) -> ImageFiles:
    assert isinstance(images, ImageFiles)
    return images


def _finished(folder: Path, origin: Origin, console: Console) -> Pack:
    found = read_pack(folder)
    origin.check_same(asdict(found.origin), folder)
    (folder / LOG).unlink(missing_ok=True)  # of a process that ended between its last two steps
    console.print(f"{folder} is complete already", markup=False, soft_wrap=True)
    return found


def _prepare(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / LOG).exists() and any(folder.iterdir()):
        raise DataError(f"{folder} holds something else: give another OUT")


def _check_room(splits: dict[str, _Split], log: PackingLog, origin: Origin) -> None:
    num_missing = sum(len(images) - log.num_files(split) for split, (images, _) in splits.items())
    missing, free = num_missing * origin.image_bytes, shutil.disk_usage(log.folder).free
    if missing > free:
        raise DataError(
            f"{log.folder} needs {missing / 1e9:.1f} GB more and its disk has {free / 1e9:.1f} GB: make room and "
            f"{GO_ON}, or give another OUT or a smaller --image-size"
        )


def _pack_images(splits: dict[str, _Split], log: PackingLog, num_workers: int, console: Console) -> None:
    """Append all chunks to the log that it lacks."""
    num_files = sum(len(images) for images, _ in splits.values())
    pool = ThreadPoolExecutor(num_workers)
    try:
        with image_progress(console, f"packing {log.folder.name}", num_files) as progress:
            with progress.clock_stopped():
                progress.advance(sum(log.num_files(split) for split in SPLITS))
            for split, (images, _) in splits.items():
                for files, decoded in _chunks(images, log.num_files(split), pool):
                    log.append(split, len(files), *_collect(images, files, decoded, progress))
    finally:
        pool.shutdown(cancel_futures=True)  # not decoding ahead to the end after an interruption


def _chunks(images: ImageFiles, start: int, pool: Executor) -> Iterator[tuple[range, Decoded]]:
    """The files of each chunk from `start` on, and what they decode to; the next one is decoded meanwhile."""
    step = max(1, CHUNK_BYTES // (3 * images.image_size**2))
    ahead: deque[tuple[range, Decoded]] = deque()
    for first in range(start, len(images), step):
        files = range(first, min(first + step, len(images)))
        ahead.append((files, pool.map(partial(_decoded, images), files)))
        if len(ahead) == 2:
            yield ahead.popleft()
    yield from ahead


def _collect(
    images: ImageFiles, files: range, decoded: Decoded, progress: ImageProgress
) -> tuple[np.ndarray, dict[str, str]]:
    """uint8 [M, S, S, 3] of those of `files` that could be decoded, and the names of the others, with the reason."""
    pixels = np.empty((len(files), images.image_size, images.image_size, 3), np.uint8)
    skipped: dict[str, str] = {}
    num_images = 0
    for index, result in zip(files, decoded, strict=True):
        if isinstance(result, Tensor):
            pixels[num_images] = result
            num_images += 1
        else:
            skipped[images.names[index]] = result
        progress.advance(1)
    return pixels[:num_images], skipped


def _decoded(images: ImageFiles, index: int) -> Tensor | str:
    """See Decoded."""
    try:
        return decode_resized(images, index)
    except DataError as error:
        reason = str(error).removesuffix(f": {REMEDY}")
        if images.on_error == "raise":
            raise DataError(
                f"{reason}: replace it, or add --skip-errors to leave such files out; then {GO_ON}"
            ) from error
        return reason


def _finish(splits: dict[str, _Split], log: PackingLog, origin: Origin, class_names: Sequence[str]) -> Pack:
    """Write the labels, then what says that the pack is complete."""
    packed = {split: _write_labels(log, split, *splits[split]) for split in SPLITS}
    mean, std = statistics_of_counts(log.counts["train"])
    pack = Pack(origin=origin, class_names=tuple(class_names), mean=mean, std=std, splits=packed)
    write_atomically(log.folder / SUMMARY, pack.to_json())
    (log.folder / LOG).unlink()
    return pack


def _write_labels(log: PackingLog, split: str, images: ImageFiles, labels: Tensor) -> PackedSplit:
    """Those of the images that are packed."""
    skipped = {name: reason for chunk in log.chunks[split] for name, reason in chunk.skipped.items()}
    if len(skipped) == len(images):
        raise DataError(f"{images.root} holds no image that can be decoded: {next(iter(skipped.values()))}")
    content = io.BytesIO()
    np.save(content, labels[torch.tensor([name not in skipped for name in images.names])].numpy())
    write_atomically(labels_path(log.folder, split), content.getvalue())
    return PackedSplit(
        num_images=len(images) - len(skipped),
        labels_sha256=sha256(content.getvalue()).hexdigest(),
        chunk_images=[chunk.num_images for chunk in log.chunks[split]],
        chunk_sha256=[chunk.sha256 for chunk in log.chunks[split]],
        skipped=skipped,
    )
