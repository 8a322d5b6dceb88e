"""Reading ahead of a memory map: the right pages at the right time, and of nothing else."""

import mmap

import numpy as np
import pytest
import torch

from fastadaad.data.engines import read_ahead as module
from fastadaad.data.engines.read_ahead import is_mapped, read_ahead

NUM_IMAGES, SHAPE = 50, (31, 17, 3)  # 1,581 bytes, so that images share pages and cross their borders
IMAGE_BYTES = 31 * 17 * 3
BATCHES = [torch.tensor([7, 49, 0]), torch.tensor([7]), torch.tensor([20, 21])]


@pytest.fixture
def images(tmp_path) -> torch.Tensor:
    """In a map of a file, of which they are all but the first 100 bytes."""
    path = tmp_path / "images"
    np.arange(100 + NUM_IMAGES * IMAGE_BYTES).astype(np.uint8).tofile(path)
    mapped = np.memmap(path, np.uint8, "c", offset=100, shape=(NUM_IMAGES, *SHAPE))
    return torch.from_numpy(mapped)


@pytest.fixture
def advised(monkeypatch) -> list[tuple[int, int, int]]:
    """(first address, bytes, advice) of all advice that is given and taken."""
    given, madvise = [], module._libc.madvise

    def recorded(address: int, num_bytes: int, advice: int) -> None:
        assert madvise(address, num_bytes, advice) == 0
        given.append((address, num_bytes, advice))

    monkeypatch.setattr(module, "_libc", type("Library", (), {"madvise": staticmethod(recorded)}))
    return given


def test_a_file_that_is_mapped_is_told_from_memory(images):
    assert is_mapped(images)
    assert is_mapped(images[3:])
    assert not is_mapped(images.clone())
    assert not is_mapped(images.transpose(1, 2))
    assert not is_mapped(torch.empty(0, *SHAPE, dtype=torch.uint8))
    assert not is_mapped(images.to("meta"))


def test_batches_come_as_they_are(images):
    for batches in (BATCHES, BATCHES[:1], []):
        given = list(read_ahead(images, batches))
        assert len(given) == len(batches)
        assert all(torch.equal(*pair) for pair in zip(given, batches, strict=True))


def pages_of(images: torch.Tensor, indices: torch.Tensor) -> list[set[int]]:
    """Addresses of the pages in which the bytes of each image are."""
    starts = [images[index].data_ptr() for index in indices.tolist()]
    return [{byte - byte % mmap.PAGESIZE for byte in range(start, start + IMAGE_BYTES)} for start in starts]


def test_exactly_the_pages_of_a_batch_are_read_while_the_one_before_is_worked_on(images, advised):
    reading = read_ahead(images, BATCHES)
    next(reading)
    (_, num_bytes, advice), *asked = advised
    assert (advice, num_bytes >= images.nbytes) == (mmap.MADV_RANDOM, True)
    # Before the first batch is given, it and the second are asked for; then always one more.
    for batches in (BATCHES[:2], BATCHES, BATCHES):
        _, *asked = advised
        expected = [pages for batch in batches for pages in pages_of(images, batch)]
        assert [set(range(first, first + size, mmap.PAGESIZE)) for first, size, _ in asked] == expected
        assert {advice for *_, advice in asked} == {mmap.MADV_WILLNEED}
        next(reading, None)
