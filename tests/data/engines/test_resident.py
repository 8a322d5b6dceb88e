"""Behaviour of the resident engine alone; test_pipeline.py checks the contract of all engines."""

from pathlib import Path

import pytest
import torch

from fastadaad.data import Augmentation, ImageFiles, ResidentPipeline, Sampling
from fastadaad.data.engines import resident
from fastadaad.data.mapped_images import map_images

IMAGES = torch.randint(0, 256, (23, 6, 9, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
NAMES = torch.arange(23)
SAMPLING = Sampling(batch_size=5)


def test_images_are_not_copied_on_the_cpu():
    pipeline = ResidentPipeline(IMAGES, NAMES, sampling=SAMPLING, samples=torch.arange(10))
    assert pipeline._images.data_ptr() == IMAGES.data_ptr()


def test_strided_images_are_read_correctly():
    sampling = Sampling(batch_size=23, shuffle=False)
    (x_natural, _), *_ = ResidentPipeline(IMAGES.flip(0).transpose(1, 2), NAMES, sampling=sampling).epoch(0)
    assert torch.equal(x_natural, IMAGES.flip(0).permute(0, 3, 2, 1).float() / 255)


def test_batches_can_be_channels_last():
    options = {"sampling": SAMPLING, "augmentation": Augmentation(padding=2, flip=True)}
    plain = ResidentPipeline(IMAGES, NAMES, **options)
    strided = ResidentPipeline(IMAGES, NAMES, channels_last=True, **options)
    for (x_natural, _), (x_strided, _) in zip(plain.epoch(0), strided.epoch(0), strict=True):
        assert torch.equal(x_natural, x_strided)
        assert x_strided.is_contiguous(memory_format=torch.channels_last)


def test_images_that_do_not_fit_are_gathered_in_host_memory(monkeypatch):
    """The path for small GPUs without its streams: batches are the same as from images on the device."""
    gathered = []

    def uploaded(images, batches, batch_size, device):
        for batch in batches:
            gathered.append((len(batch), batch_size))
            yield images[batch]

    monkeypatch.setattr(resident, "_uploaded", uploaded)
    options = {"sampling": SAMPLING, "samples": torch.arange(20), "augmentation": Augmentation(padding=2, flip=True)}
    on_device = ResidentPipeline(IMAGES, NAMES, **options)
    on_host = ResidentPipeline(IMAGES, NAMES, max_bytes=IMAGES.nbytes - 1, **options)
    assert (on_device.is_on_device, on_host.is_on_device) == (True, False)
    for (x_natural, labels), (x_gathered, labels_gathered) in zip(on_device.epoch(1), on_host.epoch(1), strict=True):
        assert torch.equal(x_natural, x_gathered)
        assert torch.equal(labels, labels_gathered)
    assert gathered == [(5, 5)] * 4


def test_only_mapped_images_are_read_ahead(monkeypatch, tmp_path):
    num_batches = []
    monkeypatch.setattr(
        resident, "read_ahead", lambda images, batches: num_batches.append(len(batches)) or iter(batches)
    )
    (tmp_path / "images").write_bytes(IMAGES.numpy().tobytes())
    mapped = map_images(tmp_path / "images", (6, 9, 3))
    epochs = [ResidentPipeline(images, NAMES, sampling=SAMPLING).epoch(0) for images in (IMAGES, mapped)]
    for (x_natural, _), (x_mapped, _) in zip(*epochs, strict=True):
        assert torch.equal(x_natural, x_mapped)
    assert num_batches == [5]  # one epoch, of the map


def test_files_are_refused_with_the_remedy():
    files = ImageFiles(root=Path("pets"), names=["a.jpg"] * 5, image_size=8)
    with pytest.raises(ValueError, match=r"pets holds image files: run fastadaad pack, or set data.engine=dali"):
        ResidentPipeline(files, torch.zeros(5, dtype=torch.int64), sampling=SAMPLING)
