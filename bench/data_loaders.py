"""Plain DataLoader with torchvision's transforms, the baseline of the engines."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fastadaad.data.pipeline import Batch


class ArrayDataset(Dataset):
    """Transformed images and labels, one by one; images: uint8 [M, C, H, W], labels: [M]."""

    def __init__(self, images: Tensor, labels: Tensor, transform: Callable[[Tensor], Tensor]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.images[index]), self.labels[index]


def array_dataset(images: Tensor, labels: Tensor, padding: int) -> Dataset:
    """Data set with random crops and flips; on tensors, as transforms are slower on PIL images.

    Args:
        images: uint8 [M, H, W, C].
        labels: int64 [M].
        padding: Width of the black border before the crop, in pixels.
    """
    crop = v2.RandomCrop(images.shape[1:3], padding=padding)
    to_float = v2.ToDtype(torch.float32, scale=True)
    transform = v2.Compose([crop, v2.RandomHorizontalFlip(), to_float])
    return ArrayDataset(images.permute(0, 3, 1, 2).contiguous(), labels, transform)


def file_dataset(folder: Path, image_size: int, min_crop_scale: float) -> Dataset:
    """Data set of image files with random resized crops and flips; `folder` has one folder per class."""
    crop = v2.RandomResizedCrop(image_size, scale=(min_crop_scale, 1.0), antialias=True)
    to_float = v2.ToDtype(torch.float32, scale=True)
    return ImageFolder(str(folder), v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ToImage(), to_float]))


def epoch(dataset: Dataset, batch_size: int, num_workers: int, device: torch.device) -> Iterator[Batch]:
    """Yields the batches of one epoch, with its own workers."""
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    for x_natural, labels in loader:
        yield x_natural.to(device, non_blocking=True), labels.to(device, non_blocking=True)
