"""Operators of the dali engine, from paths or pixels to x_natural. Importing this module needs DALI.

No operator draws a number or keeps a state: random numbers are inputs of each batch.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.fn.io.file import read
from nvidia.dali.pipeline import Pipeline as Graph
from nvidia.dali.plugin.pytorch import feed_ndarray
from nvidia.dali.types import Constant, DALIImageType, DALIInterpType
from torch import Tensor

from fastadaad.data.augmentation import Augmentation
from fastadaad.data.dataset import ImageFiles, Images, image_shape
from fastadaad.data.resized_crop import center_window, resized_crop_windows

PREFETCH = 3  # batches: one is used while the next two are made


def build(
    source: Callable[[], Sequence[Any]],
    names: Sequence[str],
    images: Images,
    augmentation: Augmentation,
    *,
    batch_size: int,
    num_threads: int,
    device: torch.device,
) -> Graph:
    """Builds a graph that outputs x_natural, and for image files the first and last two bytes, uint8 [B, 4].

    Args:
        source: Returns a batch of each input, see DaliPipeline._inputs.
        names: Names of the inputs; the first is `image`.
        images: uint8 [M, H, W, C] or ImageFiles.
        augmentation: Augmentation of the images.
        batch_size: Largest size of a batch.
        num_threads: Number of threads of the graph.
        device: Device of x_natural.
    """
    graph = Graph(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=_device_id(device),
        prefetch_queue_depth=PREFETCH,
    )
    with graph:
        layout = None if isinstance(images, ImageFiles) else ["HWC"]
        columns = fn.external_source(source=source, num_outputs=len(names), layout=layout)
        inputs = dict(zip(names, columns, strict=True))
        if isinstance(images, ImageFiles):
            content = read(inputs["image"])
            image = _resized(content, inputs, images, augmentation.min_crop_scale, device)
            ends = [fn.cat(content[:2], content[-2:])]
        else:
            image, ends = inputs["image"].gpu() if device.type == "cuda" else inputs["image"], []
        graph.set_outputs(_augmented(image, inputs, images, augmentation.cutout), *ends)
    return graph


def run(graph: Graph, device: torch.device) -> tuple[Tensor, np.ndarray | None]:
    """Returns the next batch of `graph` for the current stream, which waits for it; the host does not.

    Raises StopIteration at the end, and any error of DALI.
    """
    if device.type == "cuda":
        stream = torch.cuda.current_stream(device)
        images, *ends = (output.as_tensor() for output in graph.run(stream))
        # A copy: memory shared by DLPack is freed by a DALI thread that first synchronises with the device, and that
        # breaks the capture of a CUDA graph.
        x_natural = torch.empty(images.shape(), device=device)
        feed_ndarray(images, x_natural, cuda_stream=stream)
    else:
        images, *ends = (output.as_tensor() for output in graph.run())
        x_natural = torch.from_dlpack(images)
    return x_natural, np.array(ends[0]) if ends else None


def encoded(path: Path) -> np.ndarray:
    """Encodes a path for DALI's file.read."""
    return np.frombuffer(os.fsencode(path), np.uint8)


def can_decode(path: Path, device: torch.device) -> bool:
    """Returns True if DALI can decode the file."""
    graph = Graph(batch_size=1, num_threads=1, device_id=_device_id(device))
    with graph:
        content = read(Constant(encoded(path)))
        graph.set_outputs(fn.decoders.image(content, device=_decoder(device)))
    try:
        graph.run()
    except RuntimeError:
        return False
    return True


def _device_id(device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _decoder(device: torch.device) -> str:
    return "mixed" if device.type == "cuda" else "cpu"


def _resized(content: Any, inputs: dict[str, Any], files: ImageFiles, min_scale: float, device: torch.device) -> Any:
    """Decodes and resizes to uint8 [S, S, 3]; the image is rotated according to its EXIF."""
    windows, arguments = partial(_center_windows, fraction=files.center_share), [fn.peek_image_shape(content)]
    if "resized_crop" in inputs:
        windows = partial(_random_windows, min_scale=min_scale)
        arguments.append(inputs["resized_crop"])
    window = fn.python_function(*arguments, function=windows, batch_processing=True)
    image = fn.decoders.image_slice(
        content,
        start=window[:2],
        shape=window[2:],
        axes=(0, 1),
        device=_decoder(device),
        jpeg_fancy_upsampling=True,  # as on the CPU and in Pillow
    )
    return fn.resize(image, size=[files.image_size] * 2, interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)


def _random_windows(shapes: list[np.ndarray], draws: list[np.ndarray], min_scale: float) -> list[np.ndarray]:
    return list(resized_crop_windows(np.stack(shapes)[:, :2], np.stack(draws), min_scale).astype(np.int32))


def _center_windows(shapes: list[np.ndarray], fraction: float) -> list[np.ndarray]:
    return [np.array(center_window(int(height), int(width), fraction), np.int32) for height, width, _ in shapes]


def _augmented(image: Any, inputs: dict[str, Any], images: Images, cutout: int) -> Any:
    """Augments uint8 [H, W, C]; returns fp32 [C, H, W] in [0, 1]."""
    height, width, channels = image_shape(images)
    if "corner" in inputs:
        image = fn.slice(image, start=inputs["corner"], shape=[height, width], axes=(0, 1), out_of_bounds_policy="pad")
    if "color" in inputs:
        image = _colored(image, inputs["color"])
    # The product with 1/255 costs nothing here. Arrays get the quotient, which matches crop_flip to the last bit;
    # resized files cannot match it anyway.
    is_quotient = not isinstance(images, ImageFiles)
    image = fn.crop_mirror_normalize(
        image,
        mirror=inputs.get("flip", 0),
        mean=[0.0] * channels,
        std=[1.0 if is_quotient else 255.0] * channels,
        output_layout="CHW",
    )
    if "cutout" in inputs:
        image = fn.erase(image, anchor=inputs["cutout"], shape=[cutout, cutout], axes=(1, 2))
    return image / 255.0 if is_quotient else image


def _colored(image: Any, factors: Any) -> Any:
    """Scales brightness, contrast and saturation; rounds to nearest after each, where torchvision rounds down."""
    image = fn.brightness(image, brightness=factors[0])
    grey = fn.color_space_conversion(image, image_type=DALIImageType.RGB, output_type=DALIImageType.GRAY)
    mean = fn.reductions.mean(grey).cpu()  # parameters of operators are on the CPU
    image = fn.contrast(image, contrast=factors[1], contrast_center=mean)
    return fn.saturation(image, saturation=factors[2])
