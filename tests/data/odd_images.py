"""Unusual and broken image files, with the pixels or the error that a reader must give."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 40


class OddImage(NamedTuple):
    """Decoded file, uint8 [H, W, 3], and the largest error of a pixel that a lossy format may have."""

    pixels: np.ndarray
    tolerance: int = 0


def _smooth() -> np.ndarray:
    """Two ramps, so that every corner differs and JPEG is nearly exact; uint8 [HEIGHT, WIDTH, 3]."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([40 + 5 * columns, 60 + 6 * rows, 100 + rows + columns], axis=2).astype(np.uint8)


SMOOTH = _smooth()
GREY = SMOOTH[..., 0]
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
JPEG_ERROR = 4
PALETTE = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
INDICES = (np.arange(HEIGHT)[:, None] + np.arange(WIDTH)).astype(np.uint8) % 16

# EXIF orientation -> transform that a reader has to apply to the stored pixels.
ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


def write_readable(folder: Path) -> dict[Path, OddImage]:
    """Writes one file of each readable kind to `folder`; returns the pixels of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = {**_write_lossless(folder), **_write_jpeg(folder)}
    return {folder / name: image for name, image in expected.items()}


def _write_lossless(folder: Path) -> dict[str, OddImage]:
    image, grey, palette = Image.fromarray(SMOOTH), Image.fromarray(GREY), _palette_image(INDICES)
    alpha = Image.fromarray(np.where(INDICES > 7, INDICES * 16, 0).astype(np.uint8))
    for name in ("rgb.png", "rgb.bmp", "rgb.tif", "rgb.ppm", "UPPER.PNG"):
        image.save(folder / name)
    image.save(folder / "rgb.webp", lossless=True)
    image.save(folder / "png_named.jpg", format="PNG")
    Image.merge("RGBA", (*image.split(), alpha)).save(folder / "alpha.png")
    grey.save(folder / "grey.png")
    grey.save(folder / "grey.pgm")
    Image.merge("LA", (grey, alpha)).save(folder / "grey_alpha.png")
    Image.fromarray(INDICES > 7).save(folder / "one_bit.png")
    palette.save(folder / "palette.png")
    palette.save(folder / "palette_transparent.png", transparency=bytes(range(0, 256, 16)))
    palette.save(folder / "animated.gif", save_all=True, append_images=[_palette_image(15 - INDICES)])
    # 257 k is the 16-bit value of the 8-bit k; changes of the low byte must not matter.
    sixteen_bit = GREY.astype(np.uint16) * 256 + 255 - GREY
    Image.fromarray(sixteen_bit).save(folder / "sixteen_bit.png")
    Image.fromarray(sixteen_bit).save(folder / "sixteen_bit.tif")
    (folder / "sixteen_bit.pgm").write_bytes(
        b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + sixteen_bit.astype(">u2").tobytes()
    )
    (folder / "rgb_sixteen_bit.png").write_bytes(_sixteen_bit_png(SMOOTH.astype(np.uint16) * 257))
    grey_names = ("grey.png", "grey.pgm", "grey_alpha.png", "sixteen_bit.png", "sixteen_bit.tif", "sixteen_bit.pgm")
    rgb_names = ("rgb.png", "rgb.bmp", "rgb.tif", "rgb.ppm", "rgb.webp", "UPPER.PNG", "png_named.jpg", "alpha.png")
    palette_names = ("palette.png", "palette_transparent.png", "animated.gif")
    return {
        **dict.fromkeys((*rgb_names, "rgb_sixteen_bit.png"), OddImage(SMOOTH)),
        **dict.fromkeys(grey_names, OddImage(_three_channels(GREY))),
        **dict.fromkeys(palette_names, OddImage(PALETTE[INDICES])),
        "one_bit.png": OddImage(_three_channels(np.where(INDICES > 7, 255, 0).astype(np.uint8))),
    }


def _write_jpeg(folder: Path) -> dict[str, OddImage]:
    image = Image.fromarray(SMOOTH)
    Image.fromarray(GREY).save(folder / "grey.jpg", format="JPEG", quality=95)
    image.save(folder / "progressive.JPEG", progressive=True, **JPEG)
    image.save(folder / "jpeg_named.png", **JPEG)
    # With Adobe's marker, which declares that the stored values are inverted.
    inks = [Image.fromarray(ink) for ink in (*np.moveaxis(255 - SMOOTH, 2, 0), np.zeros_like(GREY))]
    Image.merge("CMYK", inks).save(folder / "cmyk.jpg", **JPEG)
    image.save(folder / "bad_exif.jpg", exif=b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x40no directory of tags", **JPEG)
    expected = {"grey.jpg": OddImage(_three_channels(GREY), JPEG_ERROR)}
    for orientation, turned in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"orientation_{orientation}.jpg", exif=exif, **JPEG)
        expected[f"orientation_{orientation}.jpg"] = OddImage(turned(SMOOTH), JPEG_ERROR)
    names = ("progressive.JPEG", "jpeg_named.png", "cmyk.jpg", "bad_exif.jpg")
    return expected | dict.fromkeys(names, OddImage(SMOOTH, JPEG_ERROR))


def write_broken(folder: Path) -> dict[Path, str]:
    """Writes one file of each unreadable kind to `folder`; returns words of the error for each file."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for name in ("truncated.jpg", "truncated.png", "truncated.bmp"):
        noise.save(folder / name)
        (folder / name).write_bytes((folder / name).read_bytes()[:2000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "header.jpg").write_bytes((folder / "truncated.jpg").read_bytes()[:20])
    (folder / "web_page.jpg").write_bytes(b"\n<!DOCTYPE html>\n<html><title>Not found</title></html>")
    (folder / "text.png").write_bytes(b"to be done\n")
    (folder / "bomb.png").write_bytes(_png(width=60_000, height=60_000, bits=8, color_type=2, rows=b""))
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(folder / "floats.tif")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(folder / "thirty_two_bit.tif")
    (folder / "folder.jpg").mkdir()
    words = {
        "truncated.jpg": "truncated",
        "truncated.png": "truncated",
        "truncated.bmp": "truncated",
        "empty.jpg": "is empty",
        "header.jpg": "is not an image of a known format",
        "web_page.jpg": "is a web page",
        "text.png": "is not an image of a known format",
        "bomb.png": "exceeds limit",
        "floats.tif": "floating-point",
        "thirty_two_bit.tif": "32 bits",
        "folder.jpg": "is a folder",
    }
    return {folder / name: reason for name, reason in words.items()}


def _three_channels(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _palette_image(indices: np.ndarray) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette(PALETTE.tobytes())
    return image


def _sixteen_bit_png(pixels: np.ndarray) -> bytes:
    """Encodes uint16 [H, W, 3] as a PNG, which Pillow can read but not write."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return _png(width=width, height=height, bits=16, color_type=2, rows=rows)


def _png(*, width: int, height: int, bits: int, color_type: int, rows: bytes) -> bytes:
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
