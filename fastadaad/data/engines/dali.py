"""The dali engine: NVIDIA DALI reads, decodes and augments, in its own threads and on the GPU if one is used.

A DALI graph lives as long as one epoch's iterator and receives every random number as an input. So it has no position
to save: an epoch that starts at batch n yields the same batches as the whole epoch from there on, in any process.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, ImageFiles, Images
from fastadaad.data.engines import dali_status
from fastadaad.data.image_decoding import decode
from fastadaad.data.pipeline import Batch, Failure, Pipeline
from fastadaad.runtime.text import printable
from fastadaad.runtime.workers import LostWorkerError

JPEG_START, JPEG_END = (0xFF, 0xD8), (0xFF, 0xD9)


class DaliPipeline(Pipeline):
    """Pipeline whose images NVIDIA DALI decodes; `num_workers` threads read, decode and, without a GPU, augment.

    Raises ValueError if DALI is not installed.
    """

    def __init__(self, images: Images, labels: Tensor, *, num_workers: int = 2, **options: Any):
        super().__init__(images, labels, **options)
        status = dali_status()
        if status != "found":
            raise ValueError(f"data.engine=dali needs NVIDIA DALI: {status}")
        self.num_workers = num_workers

    def _read(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        pending = deque(batches)
        while pending:
            yield from self._run(epoch, pending)

    def _run(self, epoch: int, pending: deque[Tensor]) -> Iterator[Batch]:
        """Yields and removes batches from the front of `pending`, up to the first with newly skipped files."""
        from fastadaad.data.engines import dali_graph

        # A copy: another iterator may skip more files, but labels must match the images that were requested.
        skipped = dict(self.skipped)
        # DALI requests inputs ahead of their use, and accepts no empty batches.
        readable = filter(len, (self._readable(batch, skipped)[0] for batch in tuple(pending)))
        inputs = (self._inputs(epoch, batch) for batch in readable)
        graph = dali_graph.build(
            lambda: tuple(next(inputs).values()),
            tuple(self._inputs(epoch, pending[0][:1])),
            self.images,
            self.augmentation,
            batch_size=max(map(len, pending)),
            num_threads=max(1, self.num_workers),
            device=self.device,
        )
        while pending:
            batch, failures = self._readable(pending[0], skipped)
            self._skip(failures, len(batch))
            if len(batch):
                x_natural = self._next(graph, batch)
                if x_natural is None:
                    return
                yield x_natural, self.labels[batch].to(self.device, non_blocking=True)
            pending.popleft()

    def _next(self, graph: Any, batch: Tensor) -> Tensor | None:
        """Returns x_natural of `batch`, or None after its unreadable files were skipped."""
        from fastadaad.data.engines import dali_graph

        try:
            x_natural, ends = dali_graph.run(graph, self.device)
            if ends is not None:
                self._check_ends(batch, ends)
        except RuntimeError as error:
            self._refuse(batch, error)
            return None
        return x_natural

    def _inputs(self, epoch: int, batch: Tensor) -> dict[str, Any]:
        """Returns the graph's inputs for a batch of positions in `samples`: an array or a list of B arrays per name."""
        from fastadaad.data.engines.dali_graph import encoded

        draws, indices = self._draw(epoch, batch), self.samples[batch]
        inputs: dict[str, Any] = {}
        if isinstance(self.images, ImageFiles):
            inputs["image"] = [encoded(self.images.path(index)) for index in indices.tolist()]
        else:
            inputs["image"] = self.images[indices].contiguous().numpy()
        if self.augmentation.padding:
            inputs["corner"] = (torch.stack([draws.top, draws.left], dim=1) - self.augmentation.padding).int().numpy()
        if self.augmentation.flip:
            inputs["flip"] = draws.flip.int().numpy()
        if draws.cutout_center is not None:
            inputs["cutout"] = (draws.cutout_center - self.augmentation.cutout // 2).float().numpy()
        if draws.resized_crop is not None:
            inputs["resized_crop"] = draws.resized_crop.numpy()
        if draws.color is not None:
            inputs["color"] = draws.color.numpy()
        return inputs

    def _paths(self, batch: Tensor) -> list[Path]:
        assert isinstance(self.images, ImageFiles)
        return [self.images.path(index) for index in self.samples[batch].tolist()]

    def _readable(self, batch: Tensor, skipped: dict[Path, str]) -> tuple[Tensor, list[Failure]]:
        """Splits `batch` into readable files and the files in `skipped`."""
        if not skipped:
            return batch, []
        paths = self._paths(batch)
        failures = [Failure(path, skipped[path]) for path in paths if path in skipped]
        return batch[torch.tensor([path not in skipped for path in paths])], failures

    def _check_ends(self, batch: Tensor, ends: np.ndarray) -> None:
        """Raises RuntimeError for a truncated JPEG, which a decoder on a GPU may not detect."""
        is_jpeg, is_complete = (ends[:, :2] == JPEG_START).all(1), (ends[:, 2:] == JPEG_END).all(1)
        # Pillow decides: a file may have other bytes after its end.
        failures = _failures(self._paths(batch[torch.from_numpy(is_jpeg & ~is_complete)]))
        if failures:
            raise RuntimeError(failures[0].reason)

    def _refuse(self, batch: Tensor, error: RuntimeError) -> None:
        """Skips the undecodable files of a batch, or raises DataError for them; without any raises LostWorkerError."""
        paths = self._paths(batch) if isinstance(self.images, ImageFiles) else []
        failures = _failures(paths) or self._failures_of_dali(paths)
        if not failures:
            reason = printable(" ".join(str(error).split()))
            remedy = "resume the run (train: with --resume), or set data.engine=torch"
            raise LostWorkerError(f"NVIDIA DALI has stopped ({reason}): {remedy}") from error
        self._skip(failures, len(batch) - len(failures))

    def _failures_of_dali(self, paths: list[Path]) -> list[Failure]:
        """Returns intact files in a format or a variant that DALI does not support."""
        from fastadaad.data.engines.dali_graph import can_decode

        reason = "cannot be decoded by DALI: convert it, or set data.engine=torch"
        return [Failure(path, f"{path} {reason}") for path in paths if not can_decode(path, self.device)]


def _failures(paths: list[Path]) -> list[Failure]:
    """Returns the files that Pillow cannot decode."""
    return [failure for failure in map(_failure, paths) if failure]


def _failure(path: Path) -> Failure | None:
    try:
        decode(path)
    except DataError as error:
        return Failure(path, str(error))
    return None
