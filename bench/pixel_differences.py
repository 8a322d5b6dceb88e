"""Differences between dali's and torch's pixels on the same image files, from decoder and resize. Needs DALI."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline as Graph
from nvidia.dali.types import DALIInterpType

from fastadaad.config import Engine
from fastadaad.data import ImageFiles, Sampling, make_pipeline
from fastadaad.data.hashing import Use, uniform
from fastadaad.data.image_decoding import decode
from fastadaad.data.resized_crop import NUM_DRAWS, resized_crop_windows

from .data_contests import FILE_AUGMENTATION

AUGMENTATION = replace(FILE_AUGMENTATION, flip=False)
BATCH_SIZE = 16

Pixels = Iterable[np.ndarray]
"""Pixels [H, W, 3] of each image, in 1/255."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Arguments of DALI's decoder and resize; the defaults are those of the engine dali."""

    decoder: Mapping[str, Any] = field(default_factory=lambda: {"jpeg_fancy_upsampling": True})
    resize: Mapping[str, Any] = field(
        default_factory=lambda: {"antialias": True, "interp_type": DALIInterpType.INTERP_LINEAR}
    )


AS_SET = "the engine's"
DECODERS = {
    AS_SET: Setting(),
    "jpeg_fancy_upsampling=False": Setting(decoder={"jpeg_fancy_upsampling": False}),
    "use_fast_idct=True": Setting(decoder={"jpeg_fancy_upsampling": True, "use_fast_idct": True}),
}
RESIZES = {
    "antialias=False": Setting(resize={"antialias": False, "interp_type": DALIInterpType.INTERP_LINEAR}),
    "interp_type=INTERP_TRIANGULAR": Setting(resize={"interp_type": DALIInterpType.INTERP_TRIANGULAR}),
}
ALTERNATIVES = {name: setting for name, setting in {**DECODERS, **RESIZES}.items() if name != AS_SET}


def rows(files: ImageFiles, device: torch.device) -> Iterator[dict[str, object]]:
    """Yields rows for decoding alone and for a resized random crop: each setting of DALI against torch on the CPU."""
    decoded = [np.asarray(decode(files.path(index))) for index in range(len(files))]
    for name, setting in DECODERS.items():
        yield difference_row("decode", name, decoded, dali_images(files, setting, device))
    path, cropped = f"decode, crop, resize to {files.image_size}", list(engine_images("torch", files, "cpu"))
    yield difference_row(path, AS_SET, cropped, engine_images("dali", files, device))
    windows = crop_windows(decoded)
    for name, setting in ALTERNATIVES.items():
        yield difference_row(path, name, cropped, dali_images(files, setting, device, windows))


def crop_windows(decoded: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the crops (top, left, height, width) of all images for epoch 0 with seed 0: int64 [M, 4]."""
    sizes = np.array([image.shape[:2] for image in decoded])
    draws = uniform(0, Use.RESIZED_CROP, 0, torch.arange(len(decoded)), NUM_DRAWS).numpy()
    return resized_crop_windows(sizes, draws, AUGMENTATION.min_crop_scale)


def engine_images(engine: Engine, files: ImageFiles, device: torch.device | str) -> Pixels:
    """Yields the images of an engine for epoch 0 with seed 0."""
    pipeline = make_pipeline(
        engine,
        files,
        torch.zeros(len(files), dtype=torch.int64),
        sampling=Sampling(batch_size=BATCH_SIZE, shuffle=False),
        augmentation=AUGMENTATION,
        num_workers=0,
        device=device,
    )
    for x_natural, _ in pipeline.epoch(0):
        yield from (255 * x_natural).permute(0, 2, 3, 1).cpu().numpy()


def dali_images(
    files: ImageFiles, setting: Setting, device: torch.device, windows: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yields the images as decoded by DALI, cropped and resized if `windows` are given.

    Args:
        files: The images.
        setting: Arguments of DALI.
        device: CPU, or the GPU that decodes.
        windows: Crops (top, left, height, width): int64 [M, 4].
    """
    decoder = dict(setting.decoder, device="mixed" if device.type == "cuda" else "cpu")
    batches = torch.arange(len(files)).split(BATCH_SIZE)
    contents = [[np.fromfile(files.path(index), np.uint8) for index in batch.tolist()] for batch in batches]
    graph = Graph(batch_size=BATCH_SIZE, num_threads=1, device_id=0 if device.type == "cuda" else None)
    with graph:
        content = fn.external_source(source=contents)
        if windows is None:
            graph.set_outputs(fn.decoders.image(content, **decoder))
        else:
            window = fn.external_source(source=[windows[batch].astype(np.int32) for batch in batches])
            image = fn.decoders.image_slice(content, start=window[:2], shape=window[2:], axes=(0, 1), **decoder)
            graph.set_outputs(fn.resize(image, size=[files.image_size] * 2, **setting.resize))
    for batch in batches:
        (images,) = graph.run()
        images = images.as_cpu()
        yield from (np.array(images.at(position)) for position in range(len(batch)))


def difference_row(path: str, setting: str, expected: Pixels, found: Pixels) -> dict[str, object]:
    """Returns the row of mean and largest difference over all pixels of all images, in 1/255.

    Args:
        path: Operations on the images, for the row.
        setting: Name of DALI's setting, for the row.
        expected: Images of torch.
        found: Images of DALI.
    """
    total = maximum = 0.0
    count = num_images = 0
    for ours, theirs in zip(expected, found, strict=True):
        difference = np.abs(ours.astype(np.float64) - theirs)
        total, maximum = total + difference.sum(), max(maximum, difference.max())
        count, num_images = count + difference.size, num_images + 1
    return {
        "path": path,
        "setting": setting,
        "mean_difference": float(f"{total / count:.4g}"),
        "max_difference": round(maximum),
        "num_images": num_images,
    }
