"""What a data set is once it has been read."""

from dataclasses import dataclass

from torch import Tensor


class DataError(ValueError):
    """A data set that cannot be read; the message is one line that names the file and what to do."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images uint8 [M, H, W, C] with labels int64 [M], 0 <= label < len(class_names), both on the CPU."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
