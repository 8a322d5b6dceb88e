"""Data sets of two ranks: equal ones, and each kind of difference."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from fastadaad.data import DataError, Dataset, ImageFiles
from fastadaad.data.rank_agreement import check_same_on_all_ranks, dataset_digest
from fastadaad.runtime.distributed import ProcessGroup

LABELS = torch.arange(6) % 3
IMAGES = (torch.arange(6 * 4 * 4 * 3) % 251).to(torch.uint8).view(6, 4, 4, 3)
ARRAYS = Dataset(
    name="arrays",
    train_images=IMAGES,
    train_labels=LABELS,
    test_images=IMAGES[:3],
    test_labels=LABELS[:3],
    class_names=("a", "b", "c"),
)
NAMES = tuple(f"a/{number}.jpg" for number in range(6))


def files(names, root: str = "images") -> ImageFiles:
    return ImageFiles(root=Path(root), names=names, image_size=8)


FILES = replace(ARRAYS, name="folder", train_images=files(NAMES), test_images=files(NAMES[:3]))
OTHER_PIXEL = IMAGES.clone()
OTHER_PIXEL[5, 3, 3, 2] ^= 1

# Data sets of rank 0 and of rank 1, and the difference that both report.
CASES = {
    "the same arrays": (ARRAYS, replace(ARRAYS, train_images=IMAGES.clone()), None),
    "the same files elsewhere": (FILES, replace(FILES, train_images=files(list(NAMES), "/mnt/images")), None),
    "a file less": (
        FILES,
        replace(FILES, train_images=files(NAMES[:2] + NAMES[3:]), train_labels=LABELS[1:]),
        "5 training images instead of 6, a/3.jpg instead of a/2.jpg",
    ),
    "a file more": (
        FILES,
        replace(FILES, test_images=files(NAMES[:4]), test_labels=LABELS[:4]),
        "4 test images instead of 3, a/3.jpg instead of no file",
    ),
    "another name": (
        FILES,
        replace(FILES, train_images=files((*NAMES[:5], "a/x.jpg"))),
        "6 training images instead of 6, a/x.jpg instead of a/5.jpg",
    ),
    "an image less": (
        ARRAYS,
        replace(ARRAYS, train_images=IMAGES[:5], train_labels=LABELS[:5]),
        "5 training images instead of 6",
    ),
    "another pixel": (ARRAYS, replace(ARRAYS, train_images=OTHER_PIXEL), "different pixels, labels or class names"),
    "other labels": (ARRAYS, replace(ARRAYS, test_labels=LABELS[1:4]), "different pixels, labels or class names"),
    "other classes": (FILES, replace(FILES, class_names=("a", "b", "d")), "different pixels, labels or class names"),
}


def run(rank: int, folder: Path) -> None:
    """Writes the error of this rank for each case to `folder`."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    for number, (dataset, other, _) in enumerate(CASES.values()):
        message = "nothing"
        try:
            check_same_on_all_ranks(other if rank else dataset, ProcessGroup(rank=rank, size=2))
        except DataError as error:
            message = str(error)
        (folder / f"{number}-{rank}").write_text(message)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_that_differ_raise_the_same_error(tmp_path):
    multiprocessing.spawn(run, (tmp_path,), nprocs=2)
    for number, (name, (_, _, difference)) in enumerate(CASES.items()):
        expected = (
            "nothing"
            if difference is None
            else f"rank 1 has another data set than rank 0: {difference}; give all ranks the same files, in data.root"
        )
        assert [(tmp_path / f"{number}-{rank}").read_text() for rank in range(2)] == [expected] * 2, name


def test_one_rank_is_not_checked():
    assert not dist.is_initialized()
    check_same_on_all_ranks(ARRAYS, ProcessGroup())


@pytest.mark.parametrize("case", CASES)
def test_digests_differ_if_the_data_sets_do(case):
    dataset, other, difference = CASES[case]
    assert (dataset_digest(dataset) == dataset_digest(other)) == (difference is None)


def test_the_digest_of_a_large_array_reads_some_of_its_images():
    """Reads about 256 of 10,000 images, evenly spaced, and every label."""
    images, labels = torch.zeros(10_000, 1, 1, 3, dtype=torch.uint8), torch.zeros(10_000, dtype=torch.int64)
    dataset = replace(ARRAYS, train_images=images, train_labels=labels)
    noticed = 0
    for index in range(0, 10_000, 13):
        changed = images.clone()
        changed[index] = 1
        noticed += dataset_digest(replace(dataset, train_images=changed)) != dataset_digest(dataset)
    assert noticed == len([index for index in range(0, 10_000, 13) if index % 39 == 0])
    changed = labels.clone()
    changed[7_777] = 1
    assert dataset_digest(replace(dataset, train_labels=changed)) != dataset_digest(dataset)
