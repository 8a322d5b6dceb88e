"""What a data set is once it has been read."""

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
    """M images as files of any size, decoded when a batch needs them and brought to image_size x image_size x 3."""

    root: Path
    names: Sequence[str]
    """Below `root`, one for each image."""
    image_size: int
    center_share: float = 1.0
    """Of images that are not cropped at random: side of the square in the middle that is kept, over the shorter side.

    0.875 is the usual one for ImageNet.
    """
    on_error: OnError = "raise"
    """What happens to a file that cannot be decoded: DataError, or it is left out of its batch and counted."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        return self.root / self.names[index]


Images = Tensor | ImageFiles
"""uint8 [M, H, W, C] on the CPU, which may be a memory map, or files."""


def image_shape(images: Images) -> tuple[int, int, int]:
    """(H, W, C) of the images of a batch."""
    if isinstance(images, ImageFiles):
        return images.image_size, images.image_size, 3
    _, height, width, channels = images.shape
    return height, width, channels


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images with labels int64 [M] on the CPU, 0 <= label < len(class_names)."""

    name: str
    train_images: Images
    train_labels: Tensor
    test_images: Images
    test_labels: Tensor
    class_names: tuple[str, ...]
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """(mean, std) of the training images per channel in pixel units, where they are known without reading all."""
    skipped: Mapping[Path, str] = field(default_factory=dict)
    """Image files that were left out when the set was read into arrays, and why."""
