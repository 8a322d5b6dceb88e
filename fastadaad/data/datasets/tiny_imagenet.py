"""Tiny-ImageNet-200 from the folder that its archive unpacks to.

Its validation images are the test set, as the test images have no published labels. Classes are numbered in the
alphabetical order of their WordNet ids, as in torchvision's ImageFolder and most published teachers; wnids.txt has a
different order.
"""

import os
import tempfile
import warnings
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset
from fastadaad.data.datasets.source import Source
from fastadaad.data.image_decoding import decode
from fastadaad.runtime.untrusted_files import TEXT_BYTES, check_sha256, check_size, is_web_page, one_line

IMAGE_SIZE = 64
FOLDER = "tiny-imagenet-200"
ARCHIVE = f"{FOLDER}.zip"
URL = f"https://cs231n.stanford.edu/{ARCHIVE}"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
SHA256 = "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821"
REMEDY = f"set data.root=FOLDER to the folder {FOLDER} of the unpacked archive, or set data.download=true"


def load_tiny_imagenet(source: Source) -> Dataset:
    """Decodes all 110,000 images; with on_error=skip, broken images are left out with one warning. Raises DataError.

    The sha256 of an archive is checked before it is unpacked.
    """
    folder = _folder(source)
    class_names = sorted(_lines(folder / "wnids.txt"))
    for name in class_names:
        _check_stays_below(folder / "wnids.txt", name)
    label_of = {name: label for label, name in enumerate(class_names)}
    train = [(path, label_of[name]) for name in class_names for path in _images(folder / "train" / name / "images")]
    test = [_annotated(folder / "val", line, label_of) for line in _lines(folder / "val" / "val_annotations.txt")]
    train_images, train_labels, train_skipped = _read(train, "training", source)
    test_images, test_labels, test_skipped = _read(test, "validation", source)
    return Dataset(
        name="tiny-imagenet",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        class_names=tuple(class_names),
        skipped=train_skipped | test_skipped,
    )


def _folder(source: Source) -> Path:
    """Returns `root` if it is the unpacked archive, else the folder below it, downloaded if missing and allowed."""
    if (source.root / "wnids.txt").is_file():
        return source.root
    folder = source.root / FOLDER
    if source.download and not folder.exists():
        _download(source.root)
    return folder


def _download(root: Path) -> None:
    """Downloads the archive into `root` unless it is there, and unpacks it."""
    from torchvision.datasets.utils import download_url, extract_archive

    archive = root / ARCHIVE
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Renamed once it is complete, so that an interrupted download is not taken for the whole set.
        with tempfile.TemporaryDirectory(dir=root, prefix=f"{FOLDER}-") as unpacked:
            download_url(URL, str(root), ARCHIVE, MD5)
            check_sha256(archive, SHA256)
            extract_archive(str(archive), unpacked)
            Path(unpacked, FOLDER).rename(root / FOLDER)
    except (OSError, RuntimeError) as error:
        page = f"{archive} is a web page, not an archive: " if is_web_page(archive) else ""
        raise DataError(
            f"{page}{URL} could not be downloaded ({one_line(error)}): fetch it by other means, put it into {root} as "
            f"{ARCHIVE} and set data.download=true again"
        ) from error
    except ValueError as error:
        raise DataError(f"{archive} is not the published file ({error}): delete it, then {REMEDY}") from error


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} does not exist: {REMEDY}")
    if is_web_page(path):
        raise DataError(f"{path} is a web page: delete it, then {REMEDY}")
    try:
        check_size(path, TEXT_BYTES)
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): delete it, then {REMEDY}") from error
    return [line for line in lines if line]


def _images(folder: Path) -> list[Path]:
    """Returns the images of one class, sorted by name."""
    paths = sorted(path for path in folder.glob("*.JPEG") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder} holds no .JPEG files: {REMEDY}")
    return paths


def _annotated(folder: Path, line: str, label_of: dict[str, int]) -> tuple[Path, int]:
    """Parses a line of val_annotations.txt (file name, WordNet id and a box, between tabs) into image and label."""
    file_name, wordnet_id, *_ = [*line.split("\t"), ""]
    if wordnet_id not in label_of:
        raise DataError(f"{folder / 'val_annotations.txt'} has the line {line!r}, whose class is unknown: {REMEDY}")
    _check_stays_below(folder / "val_annotations.txt", file_name)
    return folder / "images" / file_name, label_of[wordnet_id]


def _check_stays_below(path: Path, name: str) -> None:
    """Raises DataError if `name`, a file or folder in a line of `path`, leads out of its folder."""
    if name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise DataError(f"{path} has the name {name!r}, which leads elsewhere: {REMEDY}")


def _read(files: Sequence[tuple[Path, int]], split: str, source: Source) -> tuple[Tensor, Tensor, dict[Path, str]]:
    """Decodes files: returns uint8 [M, 64, 64, 3], labels int64 [M], and the skipped files with the reason."""

    def attempt(file: tuple[Path, int]) -> np.ndarray | DataError:
        try:
            return _pixels(file[0])
        except DataError as error:
            return error

    images = np.empty((len(files), IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels: list[int] = []
    skipped: dict[Path, str] = {}
    # Not rich.progress.track: after an error its thread ends at some later time and may then wait for itself.
    with ThreadPool(os.cpu_count()) as pool, Progress(transient=True) as progress:
        task = progress.add_task(f"tiny-imagenet, {split} images", total=len(files))
        for (path, label), found in zip(files, pool.imap(attempt, files, chunksize=64), strict=True):
            progress.advance(task)
            if isinstance(found, DataError):
                if source.on_error == "raise":
                    raise found
                skipped[path] = str(found)
            else:
                images[len(labels)] = found
                labels.append(label)
    if skipped:
        first = next(iter(skipped.values()))
        warnings.warn(f"{len(skipped)} {split} images of tiny-imagenet are left out, the first: {first}", stacklevel=4)
    return torch.from_numpy(images[: len(labels)]), torch.tensor(labels), skipped


def _pixels(path: Path) -> np.ndarray:
    pixels = np.asarray(decode(path))
    if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE):
        size = f"{pixels.shape[0]}x{pixels.shape[1]}"
        raise DataError(f"{path} has {size} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}: unpack the archive again")
    return pixels
