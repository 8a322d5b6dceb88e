"""Types of a data set that has been read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from fastadaad.config import OnError
from fastadaad.runtime.text import InputError


class DataError(InputError):
    """A data set that cannot be read; the message is one line that names the file and the remedy."""


def check_labels(path: Path, labels: Tensor, num_classes: int, remedy: str) -> None:
    """Raises DataError if a label of `path`, int64 [M], is outside 0..num_classes - 1."""
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise DataError(f"{path} holds the label {outside[0]}, outside 0..{num_classes - 1}: {remedy}")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """M images as files of any size, decoded when a batch needs them and resized to image_size x image_size x 3.

    Attributes:
        root: Folder of the files.
        names: Paths of the files below `root`, one per image.
        image_size: Side of the resized images in pixels.
        center_share: Side of the center crop as a fraction of the image's shorter side, for images that are not cropped
            at random. 0.875 is usual for ImageNet.
        on_error: "raise" raises DataError for a file that cannot be decoded; "skip" leaves it out of its batch and
            counts it.
    """

    root: Path
    names: Sequence[str]
    image_size: int
    center_share: float = 1.0
    on_error: OnError = "raise"

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Returns the path of an image file."""
        return self.root / self.names[index]


Images = Tensor | ImageFiles
"""uint8 [M, H, W, C] on the CPU, possibly a memory map, or image files."""


def image_shape(images: Images) -> tuple[int, int, int]:
    """Returns (H, W, C) of the images of a batch."""
    if isinstance(images, ImageFiles):
        return images.image_size, images.image_size, 3
    _, height, width, channels = images.shape
    return height, width, channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images and labels of a training set and a test set.

    Attributes:
        name: Name in DATASETS.
        train_images: uint8 [M, H, W, C] on the CPU, or image files.
        train_labels: int64 [M] on the CPU, 0 <= label < len(class_names).
        test_images: As train_images.
        test_labels: As train_labels.
        class_names: Name of each class, in the order of the labels.
        statistics: (mean, std) of the training images per channel in pixel units, if known without reading all images.
        skipped: Image files that were left out when the set was read into arrays, with the reason.
    """

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    class_names: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    skipped: Mapping[Path, str] = field(default_factory=dict)
