"""Tiny-ImageNet-200 from the folder that its archive unpacks to.

Its validation images are the test set, as the test images have no published labels. Classes are numbered in the
alphabetical order of their WordNet ids, as by torchvision's ImageFolder and so by most published teachers; the order
of wnids.txt is another one.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset

IMAGE_SIZE = 64
REMEDY = "set data.root=FOLDER to the folder tiny-imagenet-200 of the unpacked archive"


def load_tiny_imagenet(root: Path, download: bool) -> Dataset:
    """Decodes all 110,000 images; nothing is downloaded. Raises DataError."""
    if download:
        raise DataError(f"tiny-imagenet is not downloaded by this program: fetch and unpack its archive, then {REMEDY}")
    folder = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    class_names = sorted(_lines(folder / "wnids.txt"))
    label_of = {name: label for label, name in enumerate(class_names)}
    train = [(path, label_of[name]) for name in class_names for path in _images(folder / "train" / name / "images")]
    test = [_annotated(folder / "val", line, label_of) for line in _lines(folder / "val" / "val_annotations.txt")]
    return Dataset(
        name="tiny-imagenet",
        train_images=_decode([path for path, _ in train], "training"),
        train_labels=torch.tensor([label for _, label in train]),
        test_images=_decode([path for path, _ in test], "validation"),
        test_labels=torch.tensor([label for _, label in test]),
        class_names=tuple(class_names),
    )


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise DataError(f"{path} does not exist: {REMEDY}")
    return path.read_text().split("\n")[:-1]


def _images(folder: Path) -> list[Path]:
    """The images of one class, in the order of their names."""
    paths = sorted(folder.glob("*.JPEG"))
    if not paths:
        raise DataError(f"{folder} holds no .JPEG files: {REMEDY}")
    return paths


def _annotated(folder: Path, line: str, label_of: dict[str, int]) -> tuple[Path, int]:
    """Image and label of one line of val_annotations.txt: file name, WordNet id and a box, between tabs."""
    file_name, wordnet_id, *_ = [*line.split("\t"), ""]
    if wordnet_id not in label_of:
        raise DataError(f"{folder / 'val_annotations.txt'} has the line {line!r}, whose class is unknown: {REMEDY}")
    return folder / "images" / file_name, label_of[wordnet_id]


def _decode(paths: Sequence[Path], part: str) -> Tensor:
    """uint8 [M, 64, 64, 3], grey images as three equal channels."""
    from torchvision.io import ImageReadMode, decode_image

    images = torch.empty(len(paths), IMAGE_SIZE, IMAGE_SIZE, 3, dtype=torch.uint8)
    for image, path in zip(images, track(paths, f"tiny-imagenet, {part} images", transient=True), strict=True):
        try:
            pixels = decode_image(str(path), ImageReadMode.RGB)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"{path} cannot be decoded ({' '.join(str(error).split())}): unpack the archive again"
            ) from error
        if pixels.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE):
            size = f"{pixels.shape[1]}x{pixels.shape[2]}"
            raise DataError(f"{path} has {size} pixels, not {IMAGE_SIZE}x{IMAGE_SIZE}: unpack the archive again")
        image.copy_(pixels.permute(1, 2, 0))
    return images
