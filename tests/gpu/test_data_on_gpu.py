"""The engines on a CUDA device against the same batches on the CPU."""

import pytest
import torch
from torch import Tensor

from fastadaad.data import Augmentation, ResidentPipeline, Sampling, make_pipeline

IMAGES = torch.randint(0, 256, (300, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(300)
OPTIONS = {
    "sampling": Sampling(batch_size=64),
    "augmentation": Augmentation(padding=4, flip=True, cutout=8),
    "samples": torch.arange(10, 290),
}


def on_host(batches) -> list[tuple[Tensor, Tensor]]:
    """Kept until the end, so that memory that is handed out twice is seen."""
    found = list(batches)
    assert all(tensor.is_cuda for batch in found for tensor in batch)
    return [(x_natural.cpu(), labels.cpu()) for x_natural, labels in found]


def assert_same(batches, expected) -> None:
    for (x_natural, labels), (x_expected, labels_expected) in zip(batches, expected, strict=True):
        assert torch.equal(x_natural, x_expected)
        assert torch.equal(labels, labels_expected)


@pytest.mark.parametrize("engine", ["resident", "torch", "dali"])
def test_batches_are_those_of_the_cpu(engine):
    expected = list(make_pipeline("resident", IMAGES, LABELS, **OPTIONS).epoch(1))
    assert_same(on_host(make_pipeline(engine, IMAGES, LABELS, device="cuda", **OPTIONS).epoch(1)), expected)


def test_images_that_do_not_fit_are_gathered_on_the_host_ahead_of_their_use():
    expected = list(ResidentPipeline(IMAGES, LABELS, **OPTIONS).epoch(1))
    pipeline = ResidentPipeline(IMAGES, LABELS, device="cuda", max_bytes=IMAGES.nbytes - 1, **OPTIONS)
    assert not pipeline.is_on_device
    assert_same(on_host(pipeline.epoch(1)), expected)
    # A consumer that keeps the device busy, so that a copy that does not wait would be seen.
    slow = []
    for x_natural, labels in pipeline.epoch(1):
        torch.cuda._sleep(10**7)
        slow.append((x_natural.clone(), labels.clone()))
    assert_same(on_host(slow), expected)


def test_a_batch_of_the_resident_engine_does_not_wait_for_the_device():
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
