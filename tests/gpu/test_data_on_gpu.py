"""Batches of the data engines on a CUDA device against the same batches on the CPU."""

import pytest
import torch
from torch import Tensor

from fastadaad.data import Augmentation, ResidentPipeline, Sampling, make_pipeline

IMAGES = torch.randint(0, 256, (130, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(130)
OPTIONS = {
    "sampling": Sampling(batch_size=32),
    "augmentation": Augmentation(padding=4, flip=True, cutout=8),
    "samples": torch.arange(10, 120),
}


def on_host(batches) -> list[tuple[Tensor, Tensor]]:
    """Keeps all batches until the end, so that memory used by two batches would be noticed."""
    found = list(batches)
    assert all(tensor.is_cuda for batch in found for tensor in batch)
    return [(x_natural.cpu(), labels.cpu()) for x_natural, labels in found]


def assert_same(batches, expected) -> None:
    for (x_natural, labels), (x_expected, labels_expected) in zip(batches, expected, strict=True):
        assert torch.equal(x_natural, x_expected)
        assert torch.equal(labels, labels_expected)


DALI = pytest.param("dali", marks=pytest.mark.real_gpu("DALI has a CUDA runtime of its own"))


@pytest.mark.parametrize("engine", ["resident", "torch", DALI])
def test_batches_equal_the_batches_on_the_cpu(engine):
    expected = list(make_pipeline("resident", IMAGES, LABELS, **OPTIONS).epoch(1))
    assert_same(on_host(make_pipeline(engine, IMAGES, LABELS, device="cuda", **OPTIONS).epoch(1)), expected)


def test_images_that_do_not_fit_are_gathered_on_the_host_one_batch_ahead():
    expected = list(ResidentPipeline(IMAGES, LABELS, **OPTIONS).epoch(1))
    pipeline = ResidentPipeline(IMAGES, LABELS, device="cuda", max_bytes=IMAGES.nbytes - 1, **OPTIONS)
    assert not pipeline.is_on_device
    assert_same(on_host(pipeline.epoch(1)), expected)
    # The consumer keeps the device busy: a copy that overwrites a batch too early would be noticed.
    slow = []
    for x_natural, labels in pipeline.epoch(1):
        torch.cuda._sleep(10**7)
        slow.append((x_natural.clone(), labels.clone()))
    assert_same(on_host(slow), expected)


def test_a_batch_of_the_resident_engine_needs_no_host_sync():
    batches = ResidentPipeline(IMAGES, LABELS, device="cuda", **OPTIONS).epoch(0)
    next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pipelines_of_one_array_share_its_copy_on_the_device():
    first = ResidentPipeline(IMAGES, LABELS, device="cuda", **OPTIONS)
    second = ResidentPipeline(first.images, LABELS, device="cuda", **OPTIONS)
    assert first.images.is_cuda
    assert second.images.data_ptr() == first.images.data_ptr()
