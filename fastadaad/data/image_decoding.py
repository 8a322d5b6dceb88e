"""Decoding of image files to uint8 pixels, with errors of one line that name the file."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fastadaad.data.dataset import DataError, ImageFiles
from fastadaad.data.resized_crop import center_window
from fastadaad.runtime.untrusted_files import (
    IMAGE_BYTES,
    IMAGE_PIXELS,
    JPEG_SCANS,
    check_size,
    looks_like_html,
    one_line,
    start_of,
)

# Pillow's other readers are for documents and rare formats; some of them start programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset(("jpg", "jpeg", "jpe", "jfif", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm", "pgm", "pbm"))
"""Suffixes of image files in a folder, in lower case; the contents determine the format."""

JPEG_MAGIC, JPEG_SCAN = b"\xff\xd8", b"\xff\xda"
REMEDY = "replace it, or set data.on_error=skip to leave such files out"
# Pillow's warnings about files that it can read, for example with a damaged EXIF.
PILLOW_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def decode(path: Path) -> Image.Image:
    """Decodes an image file to RGB.

    The image is rotated according to its EXIF; grey is repeated in three channels, CMYK is converted, alpha is dropped.
    16-bit values keep their upper 8 bits, animations their first frame.

    Raises:
        DataError: If the file is missing, empty, truncated, not an image, has too many pixels, or pixels of unknown
            range.
    """
    # Not warnings.catch_warnings: threads that decode at the same time would revert each other's filters.
    if PILLOW_WARNINGS not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        check_size(path, IMAGE_BYTES)
        content = path.read_bytes()
        if content.startswith(JPEG_MAGIC) and content.count(JPEG_SCAN) > JPEG_SCANS:
            raise ValueError(f"it has more than {JPEG_SCANS} scans")
        # From memory: given a file, Pillow allocates as many bytes as the header of a block claims.
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > IMAGE_PIXELS:
                raise ValueError(f"it has {image.width}x{image.height} pixels, more than {IMAGE_PIXELS}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except Exception as error:  # Pillow's plugins raise any type: SyntaxError, struct.error, ...
        raise DataError(f"{path} {_problem(path, error)}: {REMEDY}") from error


def decode_resized(images: ImageFiles, index: int) -> Tensor:
    """Returns the resized center crop of image `index`, uint8 [image_size, image_size, 3]. Raises DataError."""
    image = decode(images.path(index))
    top, left, height, width = center_window(image.height, image.width, images.center_share)
    center = image.crop((left, top, left + width, top + height))
    resized = center.resize((images.image_size, images.image_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating-point pixels, whose range is not known")
    if image.mode.startswith("I"):
        return _rgb_of_integers(np.asarray(image))
    return image.convert("RGB")


def _rgb_of_integers(pixels: np.ndarray) -> Image.Image:
    """Keeps the upper 8 of 16 bits; Pillow would clip at 255 instead of scaling."""
    if pixels.min() < 0 or pixels.max() >= 2**16:
        raise ValueError("it holds pixels of 32 bits, whose range is not known")
    return Image.fromarray((pixels >> 8).astype(np.uint8)).convert("RGB")


def _problem(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not an image"
    if not path.is_file():
        return "does not exist"
    try:
        start = start_of(path)
    except OSError:
        return f"cannot be read ({one_line(error)})"
    if not start:
        return "is empty"
    if looks_like_html(start):
        return "is a web page, not an image"
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image of a known format ({', '.join(FORMATS)})"
    return f"cannot be decoded ({one_line(error)})"
