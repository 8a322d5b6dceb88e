"""Unusual image files against the arrays they were written from, and broken files against their messages."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import odd_images
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as TF

from fastadaad.data import DataError, ImageFiles
from fastadaad.data.image_decoding import decode, decode_resized


def test_readable_files_decode_to_their_pixels(tmp_path):
    for path, expected in odd_images.write_readable(tmp_path).items():
        image = decode(path)
        assert image.mode == "RGB", path
        assert np.asarray(image).shape == expected.pixels.shape, path
        difference = np.abs(np.asarray(image).astype(int) - expected.pixels).max()
        assert difference <= expected.tolerance, f"{path} is off by {difference}"


def test_orientations_differ():
    """Guards the test above: with equal orientations, a reader that ignores the EXIF would pass it."""
    turned = [turn(odd_images.SMOOTH).tobytes() for turn in odd_images.ORIENTATIONS.values()]
    assert len(set(turned)) == 8


def test_the_cmyk_file_stores_inverted_values(tmp_path):
    path = next(path for path in odd_images.write_readable(tmp_path) if path.name == "cmyk.jpg")
    assert b"Adobe" in path.read_bytes()[:100]


def test_broken_files_are_named_in_one_line(tmp_path):
    broken = odd_images.write_broken(tmp_path) | {tmp_path / "missing.jpg": "does not exist"}
    for path, words in broken.items():
        with pytest.raises(DataError) as caught:
            decode(path)
        message = str(caught.value)
        assert message.startswith(f"{path} "), message
        assert words in message, message
        assert "data.on_error=skip" in message
        assert "\n" not in message


def test_warnings_of_pillow_are_hidden(tmp_path):
    names = ("bad_exif.jpg", "palette_transparent.png")
    paths = [path for path in odd_images.write_readable(tmp_path) if path.name in names]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for path in paths:
            Image.open(path).convert("RGB")
        assert len(warned) >= len(paths)  # of Pillow itself
        warned.clear()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decode, paths * 5))
        assert not warned


@pytest.mark.parametrize(("size", "fraction"), [(16, 1.0), (16, 0.75), (50, 0.5)])
def test_resized_images_match_torchvision(tmp_path, size, fraction):
    """Compares with torchvision, which crops the center square and resizes it in two calls."""
    odd_images.write_readable(tmp_path)
    files = ImageFiles(root=tmp_path, names=["rgb.png"], image_size=size, center_share=fraction)
    side = round(fraction * odd_images.HEIGHT)
    center = TF.center_crop(Image.fromarray(odd_images.SMOOTH), [side, side])
    expected = TF.pil_to_tensor(TF.resize(center, [size, size])).permute(1, 2, 0)
    assert torch.equal(decode_resized(files, 0), expected)


def png_with_header(path: Path, width: int, height: int) -> Path:
    """Writes a PNG of one pixel whose header claims width x height pixels."""
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("side", "problem"),
    [
        (9_459, r"image file is truncated.*"),  # images of this size are decoded
        (9_460, r"it has 9460x9460 pixels, more than 89478485"),
        (20_000, r"Image size \(400000000 pixels\) exceeds limit.*"),  # the limit of Pillow itself
        (2**31 - 1, r"Image size .* exceeds limit.*"),
    ],
)
def test_an_image_with_too_many_pixels_is_refused_before_decoding(tmp_path, side, problem):
    path = png_with_header(tmp_path / "bomb.png", side, side)
    with pytest.raises(DataError, match=rf"bomb.png cannot be decoded \({problem}\): replace it"):
        decode(path)


@pytest.mark.parametrize("num_scans", [100, 101])
def test_a_jpeg_with_many_scans_is_refused_before_decoding(tmp_path, num_scans):
    """Guards against scans that would take hours to decode in a file of 1 MB."""
    stream = io.BytesIO()
    Image.new("L", (64, 64), 128).save(stream, "JPEG", progressive=True)
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    scan = content[last:-2]  # without the end of the image
    path = tmp_path / "slow.jpg"
    path.write_bytes(content[:last] + scan * (num_scans - content[:last].count(b"\xff\xda")) + content[-2:])
    if num_scans == 100:
        assert decode(path).size == (64, 64)
    else:
        with pytest.raises(DataError, match=r"slow.jpg cannot be decoded \(it has more than 100 scans\): replace it"):
            decode(path)
