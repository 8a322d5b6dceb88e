"""Memory that the resident engine takes beside the images: of an array, and of a pack that does not fit into memory.

Each is measured in a process of its own, `python -m bench.data_memory DEVICE array MEGABYTES` or `... pack FOLDER`. The
second may use less memory than the pack is large, pages of files included, where this user may make a cgroup.
"""

import argparse
import hashlib
import json
import os
import subprocess
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

from .memory import ALLOCATOR

MB = 10**6
ARRAY_MB, PACK_MB, LIMIT_MB = 500, 2000, 700
IMAGE_SIZE, NUM_CLASSES, BATCH_SIZE = 64, 10, 256
IMAGE_BYTES = 3 * IMAGE_SIZE**2
CHUNK_IMAGES = 2048
MAX_S = 40  # of an epoch: a disk may be slow
CGROUPS = Path("/sys/fs/cgroup/memory")  # of version 1
NO_LIMIT = "none: needs root and cgroups of version 1"


def rows(device: torch.device) -> Iterator[dict[str, object]]:
    """One of an array, one of a pack."""
    yield {"images": "array in memory", "limit_mb": "none", **_measured(device, "array", ARRAY_MB)}
    place = cache_folder() / "bench"  # not the folder of temporary files, which may be in memory
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as folder, memory_limit(LIMIT_MB * MB) as cgroup:
        write_pack(Path(folder), PACK_MB * MB)
        limit = NO_LIMIT if cgroup is None else LIMIT_MB
        yield {"images": "pack", "limit_mb": limit, **_measured(device, "pack", folder, cgroup=cgroup)}


def _measured(device: torch.device, *words: object, cgroup: Path | None = None) -> dict[str, object]:
    """What `main` prints in a process of its own, in the cgroup where there is one."""
    command = [sys.executable, "-m", "bench.data_memory", str(device), *map(str, words)]
    if cgroup is not None:
        command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(cgroup), *command]
    environment = {**os.environ, **ALLOCATOR}
    result = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {result.returncode}:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[Path | None]:
    """A cgroup whose processes may use so much memory together; None where this user cannot make one."""
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
    """A pack of random pixels, most of them for training, of which no page is left in memory."""
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
    """Random images in memory, as many as fit."""
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
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def epoch(dataset: Dataset, device: torch.device) -> dict[str, object]:
    """Growth of this process's memory at most over making the pipeline and one epoch, or MAX_S of it; and the rate."""
    before = peak = anonymous_bytes()
    begun = time.perf_counter()
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
        seconds = time.perf_counter() - begun
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
    epoch(array_of(4 * BATCH_SIZE * IMAGE_BYTES), options.device)  # what the first batches allocate, they keep
    is_array = options.kind == "array"
    dataset = array_of(int(options.what) * MB) if is_array else load_dataset("packed", options.what)
    print(json.dumps(epoch(dataset, options.device)))


if __name__ == "__main__":
    main(sys.argv[1:])
