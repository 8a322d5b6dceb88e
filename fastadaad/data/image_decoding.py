"""One encoded image -> uint8 pixels, as people see it, or one line that names the file."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from fastadaad.data.dataset import DataError

SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")  # Pillow would clip these at 255 instead of scaling them


def decode(path: Path) -> Image.Image:
    """The image in RGB: turned as its EXIF says, grey in three channels, CMYK converted, alpha dropped.

    Raises DataError for a file that is missing, empty, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's plugins raise what they like: SyntaxError, struct.error, ...
        raise DataError(f"{path} {_what_is_wrong(path, error)}") from error
    if upright.mode in SIXTEEN_BIT:
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    return upright.convert("RGB")


def _what_is_wrong(path: Path, error: Exception) -> str:
    remedy = "replace it, or set data.on_error=skip to leave such files out"
    if not path.is_file():
        return f"does not exist: {remedy}"
    start = path.read_bytes()[:64]
    if not start:
        return f"is empty: {remedy}"
    if looks_like_html(start):
        return f"is a web page, not an image: {remedy}"
    return f"cannot be decoded ({' '.join(str(error).split())}): {remedy}"


def looks_like_html(start: bytes) -> bool:
    """Whether the first bytes of a file are those of a web page, as servers send instead of a file."""
    return start.lstrip().lower().startswith((b"<!doctype", b"<html"))
