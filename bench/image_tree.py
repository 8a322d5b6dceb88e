"""A tree of generated JPEG files, as expensive to decode as photographs and the same bytes on every run."""

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console

from fastadaad.runtime.machine_cache import cache_folder
from fastadaad.runtime.progress import image_progress

NUM_CLASSES = 10
NUM_SHAPES = 12
QUALITY = 90
SOFT, FINE = (1, 2, 3, 4), (5, 6, 7, 8)  # octaves of noise
TEST_FRACTION = 0.02  # a data set needs test images, but nothing is measured on them


@dataclass(frozen=True, kw_only=True)
class TreeSpec:
    """Contents of a tree: equal specs give equal trees."""

    num_images: int = 2000
    """Number of training images."""
    min_size: int = 250
    """Smallest height and width, in pixels."""
    max_size: int = 500
    """Largest height and width, in pixels."""
    version: int = 1
    """Version of the generator, raised whenever its images change."""

    @property
    def name(self) -> str:
        return f"images-{self.num_images}-of-{self.min_size}-{self.max_size}-v{self.version}"

    def files(self) -> Iterator[tuple[int, Path]]:
        """Yields number and path of each image, test images last."""
        for number in range(self.num_images + max(NUM_CLASSES, round(TEST_FRACTION * self.num_images))):
            split = "train" if number < self.num_images else "val"
            yield number, Path(split, f"class-{number % NUM_CLASSES}", f"{number:06}.jpg")


def image_tree(spec: TreeSpec, console: Console, folder: Path | None = None) -> Path:
    """Returns the tree of `spec`, which is written if it does not exist.

    Args:
        spec: Contents of the tree.
        console: Console for the progress bar.
        folder: Parent of the tree; default: bench in the machine's cache folder.
    """
    root = (folder or cache_folder() / "bench") / spec.name
    if root.is_dir():
        return root
    unfinished = root.with_name(f"{root.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    files = list(spec.files())
    for parent in {path.parent for _, path in files}:
        (unfinished / parent).mkdir(parents=True)

    def write(number_and_path: tuple[int, Path]) -> None:
        number, path = number_and_path
        picture(number, spec).save(unfinished / path, quality=QUALITY)

    # Threads are enough: numpy and Pillow release the interpreter's lock.
    with image_progress(console, f"writing {root}", len(files)) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(write, files):
            progress.advance(1)
    unfinished.rename(root)
    return root


def picture(number: int, spec: TreeSpec) -> Image.Image:
    """Draws RGB image `number`: a ground of soft coloured noise, shapes with edges, fine grey noise on top."""
    generator = np.random.default_rng((spec.version, number))
    width, height = (int(side) for side in generator.integers(spec.min_size, spec.max_size, 2, endpoint=True))
    luma = _noise(generator, width, height, SOFT)[..., None]
    chroma = np.stack([_noise(generator, width, height, SOFT) for _ in range(3)], axis=2)
    image = _rgb(120 + 55 * luma + 20 * chroma)
    _draw_shapes(image, generator)
    # Calm and busy regions: the decoder's work varies over the image, as in photographs.
    busy = np.abs(_noise(generator, width, height, SOFT[:2]))
    return _rgb(np.asarray(image, np.float32) + 28 * (busy * _noise(generator, width, height, FINE))[..., None])


def _noise(generator: np.random.Generator, width: int, height: int, octaves: Sequence[int]) -> np.ndarray:
    """Sum of noise with grain 1 / 2**octave of a side, equally weighted, about standard normal: fp32 [H, W]."""
    total = np.zeros((height, width), np.float32)
    for octave in octaves:
        coarse = Image.fromarray(generator.standard_normal((2**octave, 2**octave), np.float32))
        total += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return total / len(octaves) ** 0.5


def _draw_shapes(image: Image.Image, generator: np.random.Generator) -> None:
    """Draws polygons and ellipses in dull colours, as in most photographs."""
    draw = ImageDraw.Draw(image)
    for _ in range(NUM_SHAPES):
        color = tuple((generator.integers(20, 236) + generator.integers(-30, 30, 3)).clip(0, 255).tolist())
        center = generator.uniform(0, 1, 2) * image.size
        points = center + generator.normal(0, 0.12, (int(generator.integers(3, 7)), 2)) * image.size
        if generator.random() < 0.5:
            draw.polygon([tuple(point) for point in points.tolist()], fill=color)
        else:
            draw.ellipse([*points.min(0).tolist(), *points.max(0).tolist()], fill=color)


def _rgb(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
