"""Statistics of pixels from counts and from a sample of image files."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fastadaad.data import DataError, ImageFiles, statistics
from fastadaad.data.statistics import channel_statistics


@pytest.mark.parametrize("chunk", [7, 4096])
def test_channel_statistics_are_those_of_the_pixels(chunk, monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 5, 4, 3), dtype=torch.uint8, generator=generator)
    images[..., 1] //= 4
    pixels = images.double() / 255
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(pixels.mean((0, 1, 2)).tolist(), rel=1e-9)
    assert std == pytest.approx(pixels.std((0, 1, 2), correction=0).tolist(), rel=1e-9)


def files(folder, num_files: int, **options) -> ImageFiles:
    """Writes images; all pixels of image k are (k, 2 k, 3 k)."""
    for number in range(num_files):
        Image.fromarray(np.full((4, 6, 3), (number, 2 * number, 3 * number), np.uint8)).save(folder / f"{number}.png")
    return ImageFiles(root=folder, names=[f"{number}.png" for number in range(num_files)], image_size=4, **options)


def test_statistics_of_image_files_read_evenly_spaced_files(tmp_path, monkeypatch):
    monkeypatch.setattr(statistics, "SAMPLED_FILES", 5)
    mean, std = channel_statistics(files(tmp_path, 41))
    sampled = torch.tensor([0, 10, 20, 30, 40]).double()
    assert mean == pytest.approx([factor * sampled.mean().item() / 255 for factor in (1, 2, 3)])
    assert std == pytest.approx([factor * sampled.std(correction=0).item() / 255 for factor in (1, 2, 3)])


def test_an_unreadable_file_is_skipped_only_with_on_error_skip(tmp_path):
    written = files(tmp_path, 3)
    written.path(1).write_bytes(b"")
    with pytest.raises(DataError, match=r"1.png is empty"):
        channel_statistics(written)
    mean, _ = channel_statistics(replace(written, on_error="skip"))
    assert mean == pytest.approx([1 / 255, 2 / 255, 3 / 255])
