"""Mapped images: pixels, and read-ahead of the right pages at the right time."""

import gc
import mmap

import numpy as np
import pytest
import torch

from fastadaad.data import mapped_images
from fastadaad.data.mapped_images import is_mapped, map_images, read_ahead

NUM_IMAGES, SHAPE = 50, (31, 17, 3)  # 1,581 bytes, so that images share pages and cross their borders
IMAGE_BYTES = 31 * 17 * 3
BATCHES = [torch.tensor([7, 46, 0]), torch.tensor([7]), torch.tensor([20, 21])]


@pytest.fixture
def advised(monkeypatch) -> list[tuple[int, ...]]:
    """The arguments of all advice that the system took: advice, and first byte and number of bytes if given."""
    given = []

    class RecordingMap(mmap.mmap):
        def madvise(self, *arguments):
            super().madvise(*arguments)
            given.append(arguments)

    monkeypatch.setattr(mmap, "mmap", RecordingMap)
    return given


@pytest.fixture
def images(advised, tmp_path) -> torch.Tensor:
    path = tmp_path / "images"
    np.arange(NUM_IMAGES * IMAGE_BYTES).astype(np.uint8).tofile(path)
    return map_images(path, SHAPE)


def test_images_are_those_of_the_file_and_changes_stay_in_memory(images, tmp_path):
    content = (tmp_path / "images").read_bytes()
    assert images.shape == (NUM_IMAGES, *SHAPE)
    assert images.numpy().tobytes() == content
    images.fill_(7)
    assert images.unique().tolist() == [7]
    assert (tmp_path / "images").read_bytes() == content


def test_mapped_images_are_distinguished_from_images_in_memory(images):
    assert is_mapped(images)
    assert is_mapped(images[3:])
    assert not is_mapped(images.clone())
    assert not is_mapped(images.transpose(1, 2))
    assert not is_mapped(torch.empty(0, *SHAPE, dtype=torch.uint8))
    assert not is_mapped(images.to("meta"))


@pytest.mark.slow
def test_a_map_ends_with_its_last_tensor(images, tmp_path):
    others = set(mapped_images._maps) - {images.data_ptr()}
    another = map_images(tmp_path / "images", SHAPE)[3:]
    gc.collect()
    assert is_mapped(another)
    del another
    gc.collect()
    assert set(mapped_images._maps) - {images.data_ptr()} == others


def test_batches_are_unchanged(images):
    for batches in (BATCHES, BATCHES[:1], []):
        given = list(read_ahead(images, batches))
        assert len(given) == len(batches)
        assert all(torch.equal(*pair) for pair in zip(given, batches, strict=True))


def pages_of(first: int, indices: torch.Tensor) -> list[set[int]]:
    """First bytes of the pages that hold each image, if the images begin with image `first` of the file."""
    starts = [(first + index) * IMAGE_BYTES for index in indices.tolist()]
    return [{byte - byte % mmap.PAGESIZE for byte in range(start, start + IMAGE_BYTES)} for start in starts]


@pytest.mark.parametrize("first", [0, 3])
def test_exactly_the_pages_of_the_next_batch_are_read_during_a_batch(images, advised, first):
    reading = read_ahead(images[first:], BATCHES)
    next(reading)
    assert advised[0] == (mmap.MADV_RANDOM,)
    # Two batches are requested before the first one is yielded, then one more per batch.
    for batches in (BATCHES[:2], BATCHES, BATCHES):
        _, *requested = advised
        expected = [pages for batch in batches for pages in pages_of(first, batch)]
        assert [set(range(start, start + size, mmap.PAGESIZE)) for _, start, size in requested] == expected
        assert {advice for advice, *_ in requested} == {mmap.MADV_WILLNEED}
        next(reading, None)


def test_refused_advice_is_no_error(monkeypatch, images):
    class RefusingMap(mmap.mmap):
        def madvise(self, advice, *place):
            raise OSError("no advice today")

    refusing = RefusingMap(-1, mmap.PAGESIZE)
    monkeypatch.setitem(mapped_images._maps, images.data_ptr(), refusing)
    assert len(list(read_ahead(images, BATCHES))) == len(BATCHES)
