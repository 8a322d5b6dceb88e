"""Image files of any size in one folder per class: root/train/CLASS/... and root/test/CLASS/... or root/val/CLASS/...

Classes are numbered in the alphabetical order of their folders; images are sorted by class and name. The files are only
listed: they are opened when a batch needs them.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, ImageFiles
from fastadaad.data.datasets.source import Source
from fastadaad.data.image_decoding import SUFFIXES
from fastadaad.runtime.untrusted_files import NESTED_FOLDERS

IMAGENET_SIZE, IMAGENET_CENTER_SHARE = 224, 0.875


class _Split(NamedTuple):
    """Images of one split; `names` and `others`, the files that are not images, are relative to `folder`."""

    folder: Path
    class_names: tuple[str, ...]
    names: tuple[str, ...]
    labels: Tensor
    others: list[str]


def load_folder(source: Source) -> Dataset:
    """Lists a tree of image files; if both test and val exist, test is the test set. Raises DataError."""
    if source.image_size is None:
        raise DataError("data.name=folder resizes its images: set data.image_size to a side in pixels, such as 64")
    return _load("folder", ("test", "val"), source)


def load_imagenet(source: Source) -> Dataset:
    """Lists ImageNet with val as the test set, as its test images have no published labels. Raises DataError.

    Defaults: 224 pixels, and 0.875 of the shorter side for the center crop.
    """
    size = IMAGENET_SIZE if source.image_size is None else source.image_size
    center_share = IMAGENET_CENTER_SHARE if source.center_share is None else source.center_share
    return _load("imagenet", ("val",), replace(source, image_size=size, center_share=center_share))


def _load(name: str, test_names: Sequence[str], source: Source) -> Dataset:
    train_folder, test_folder = _split_folders(source.root, test_names)
    try:
        train, test = _scan(train_folder), _scan(test_folder)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): repair or delete it") from error
    _check_same_classes(train, test)
    _warn_of_other_files(train, test)
    return Dataset(
        name=name,
        train_images=_image_files(train, source),
        train_labels=train.labels,
        test_images=_image_files(test, source),
        test_labels=test.labels,
        class_names=train.class_names,
    )


def _image_files(split: _Split, source: Source) -> ImageFiles:
    assert source.image_size is not None
    return ImageFiles(
        root=split.folder,
        names=split.names,
        image_size=source.image_size,
        center_share=1.0 if source.center_share is None else source.center_share,
        on_error=source.on_error,
    )


def _split_folders(root: Path, test_names: Sequence[str]) -> tuple[Path, Path]:
    """Returns the folders of the training and the test set."""
    places = " or ".join(test_names)
    remedy = f"set data.root=FOLDER to the folder that holds train and {places}"
    for folder in (root, root / "train"):
        if not folder.is_dir():
            raise DataError(f"{folder} does not exist: {remedy}")
    if (root / "val" / "val_annotations.txt").is_file() and (root / "val" / "images").is_dir():
        raise DataError(f"{root} has the layout of Tiny-ImageNet's archive: set data.name=tiny-imagenet")
    found = [root / name for name in test_names if (root / name).is_dir()]
    if not found:
        raise DataError(f"{root} holds train but no {places}: put the test images into {root / test_names[-1]}")
    if len(found) > 1:
        warnings.warn(f"{found[0]} is the test set, {found[1]} is left out", stacklevel=5)
    return root / "train", found[0]


def _scan(folder: Path) -> _Split:
    """Lists the images of the class folders in `folder`, at any depth. Raises DataError, OSError."""
    entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    class_names = sorted(entry.name for entry in entries if entry.is_dir())
    beside = sorted(entry.name for entry in entries if not entry.is_dir())
    _check_layout(folder, class_names, [name for name in beside if _is_image(name)])
    names: list[str] = []
    others = beside
    counts = []
    for class_name in class_names:
        files = sorted(_files(folder / class_name, class_name))
        images = [name for name in files if _is_image(name)]
        if not images:
            raise DataError(f"{folder / class_name} holds no images: put some in, or delete the folder")
        names += images
        counts.append(len(images))
        if len(images) < len(files):
            others += [name for name in files if not _is_image(name)]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return _Split(folder, tuple(class_names), tuple(names), labels, others)


def _check_layout(folder: Path, class_names: Sequence[str], images: Sequence[str]) -> None:
    remedy = "sort the images into class folders, the same for training and test"
    if images:
        place = f"beside its {len(class_names)} class folders" if class_names else "and no class folders"
        raise DataError(f"{folder} holds {len(images)} images {place}, such as {images[0]}: {remedy}")
    if not class_names:
        raise DataError(f"{folder} holds no class folders: {remedy}")


def _files(folder: str | Path, name: str) -> Iterator[str]:
    """Yields the files in `folder` at any depth, except hidden ones; `name` is its path below the split.

    Directory entries tell files from folders, so no file is opened: a million files take seconds. Raises DataError.
    """
    if name.count("/") > NESTED_FOLDERS:
        raise DataError(f"{folder} is {NESTED_FOLDERS} folders below its class: does a link lead back up? delete it")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(entry.path, f"{name}/{entry.name}")
            else:
                yield f"{name}/{entry.name}"


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in SUFFIXES


def _check_same_classes(train: _Split, test: _Split) -> None:
    different = sorted(set(train.class_names) ^ set(test.class_names))
    if different:
        name = different[0]
        with_it, without = (train, test) if name in train.class_names else (test, train)
        raise DataError(
            f"{with_it.folder / name} has no counterpart in {without.folder}: give training and test the same "
            f"class folders ({len(different)} differ)"
        )


def _warn_of_other_files(*splits: _Split) -> None:
    others = [split.folder / name for split in splits for name in split.others]
    if others:
        warnings.warn(
            f"{len(others)} files have no suffix of an image and are left out, such as {others[0]}", stacklevel=5
        )
