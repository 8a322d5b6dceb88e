"""Memory that the resident engine needs beside the images: for an array, and for a pack that exceeds memory.

Each is measured in its own process, `python -m bench.data_memory DEVICE array MEGABYTES` or `... pack FOLDER`. If this
user may create a cgroup, the second process gets less memory (file pages included) than the size of the pack.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from fastadaad.data import Augmentation, Dataset, ResidentPipeline, Sampling, load_dataset
from fastadaad.data.datasets.packed import SPLITS, SUMMARY, Origin, Pack, PackedSplit, images_path, labels_path
from fastadaad.runtime.machine_cache import cache_folder
from fastadaad.runtime.resident_memory import status_bytes

from .memory import printed_json

MB = 10**6
ARRAY_MB, PACK_MB, LIMIT_MB = 500, 2000, 700
IMAGE_SIZE, NUM_CLASSES, BATCH_SIZE = 64, 10, 256
IMAGE_BYTES = 3 * IMAGE_SIZE**2
CHUNK_IMAGES = 2048
MAX_S = 40  # seconds of an epoch: a disk may be slow
CGROUPS = Path("/sys/fs/cgroup/memory")  # version 1
NO_LIMIT = "none: needs root and cgroups of version 1"


def rows(device: torch.device) -> Iterator[dict[str, object]]:
    """Yields one row for an array and one for a pack."""
    yield {"images": "array in memory", "limit_mb": "none", **_measured(device, "array", ARRAY_MB)}
    place = cache_folder() / "bench"  # the folder of temporary files may be in memory
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder, memory_limit(LIMIT_MB * MB) as cgroup:
        write_pack(Path(folder), PACK_MB * MB)
        limit = NO_LIMIT if cgroup is None else LIMIT_MB
        yield {"images": "pack", "limit_mb": limit, **_measured(device, "pack", folder, cgroup=cgroup)}


def _measured(device: torch.device, *words: object, cgroup: Path | None = None) -> dict[str, object]:
    """Runs `main` in a fresh process, in the cgroup if given, and returns the row that it prints."""
    command = [sys.executable, "-m", "bench.data_memory", str(device), *map(str, words)]
    if cgroup is not None:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
    return printed_json(command)


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[Path | None]:
    """Yields a cgroup whose processes may use `num_bytes` of memory together; None if this user cannot create one."""
    cgroup = CGROUPS / f"fastadaad-bench-{os.getpid()}"
    if not os.access(CGROUPS, os.W_OK) or not (CGROUPS / "memory.limit_in_bytes").exists():
        yield None
        return
    cgroup.mkdir()
    try:
        (cgroup / "memory.limit_in_bytes").write_text(str(num_bytes))
        yield cgroup
    finally:
        cgroup.rmdir()


def write_pack(folder: Path, num_bytes: int) -> None:
    """Writes a pack of random pixels, most of them for training, and drops its pages from memory."""
    generator = np.random.default_rng(0)
    num_images = {"train": num_bytes // IMAGE_BYTES, "test": CHUNK_IMAGES}
    splits = {split: _write_split(folder, split, num_images[split], generator) for split in SPLITS}
    pack = Pack(
        origin=Origin(image_size=IMAGE_SIZE, center_share=1.0, files_sha256=""),
        class_names=tuple(map(str, range(NUM_CLASSES))),
        mean=(0.5,) * 3,
        std=(12**-0.5,) * 3,
        splits=splits,
    )
    (folder / SUMMARY).write_bytes(pack.to_json())


def _write_split(folder: Path, split: str, num_images: int, generator: np.random.Generator) -> PackedSplit:
    chunk_images = [min(CHUNK_IMAGES, num_images - first) for first in range(0, num_images, CHUNK_IMAGES)]
    chunk_sha256 = []
    with images_path(folder, split).open("wb") as file:
        for count in chunk_images:
            content = generator.bytes(count * IMAGE_BYTES)
            file.write(content)
            chunk_sha256.append(hashlib.sha256(content).hexdigest())
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    np.save(labels_path(folder, split), np.arange(num_images) % NUM_CLASSES)
    return PackedSplit(
        num_images=num_images,
        labels_sha256=hashlib.sha256(labels_path(folder, split).read_bytes()).hexdigest(),
        chunk_images=chunk_images,
        chunk_sha256=chunk_sha256,
        skipped={},
    )


def array_of(num_bytes: int) -> Dataset:
    """Random images in memory, as many as fit into `num_bytes`."""
    num_images = num_bytes // IMAGE_BYTES
    images = torch.randint(0, 256, (num_images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=torch.uint8)
    labels = torch.arange(num_images) % NUM_CLASSES
    names = tuple(map(str, range(NUM_CLASSES)))
    return Dataset(
        name="array",
        train_images=images,
        train_labels=labels,
        test_images=images[:1],
        test_labels=labels[:1],
        class_names=names,
    )


def anonymous_bytes() -> int:
    """Resident memory of this process that is not backed by a file."""
    return status_bytes("RssAnon")


def epoch(dataset: Dataset, device: torch.device) -> dict[str, object]:
    """Builds the pipeline, reads one epoch (at most MAX_S seconds of it) and returns the row of the CSV file.

    growth_mb is the peak of this process's anonymous memory minus its value before.
    """
    before = peak = anonymous_bytes()
    start = time.perf_counter()
    pipeline = ResidentPipeline(
        dataset.train_images,
        dataset.train_labels,
        sampling=Sampling(batch_size=BATCH_SIZE),
        augmentation=Augmentation(padding=4, flip=True),
        device=device,
    )
    num_read = 0
    for _, labels in pipeline.epoch(0):
        peak = max(peak, anonymous_bytes())
        num_read += len(labels)
        seconds = time.perf_counter() - start
        if seconds > MAX_S:
            break
    num_bytes = len(dataset.train_images) * IMAGE_BYTES
    return {
        "mb": round(num_bytes / MB),
        "num_images": len(dataset.train_images),
        "num_read": num_read,
        "batch_size": BATCH_SIZE,
        "growth_mb": round((peak - before) / MB, 1),
        "growth_share": round((peak - before) / num_bytes, 4),
        "images_per_s": round(num_read / seconds),
    }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.data_memory", description=__doc__)
    parser.add_argument("device", type=torch.device)
    parser.add_argument("kind", choices=("array", "pack"))
    parser.add_argument("what")
    options = parser.parse_args(argv)
    epoch(array_of(4 * BATCH_SIZE * IMAGE_BYTES), options.device)  # warm-up: buffers of the first batches are kept
    is_array = options.kind == "array"
    dataset = array_of(int(options.what) * MB) if is_array else load_dataset("packed", options.what)
    print(json.dumps(epoch(dataset, options.device)))


if __name__ == "__main__":
    main(sys.argv[1:])
