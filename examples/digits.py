"""Data and teacher of the examples: handwritten digits of 8x8 pixels, and a robust teacher shipped with fastadaad."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fastadaad import load_model
from fastadaad.data import ImageFiles, load_dataset
from fastadaad.models.shipped import checkpoint_path

EPSILON = 0.15


def pixels(images: Tensor | ImageFiles) -> Tensor:
    """Converts uint8 [N, H, W, C] to fp32 [N, C, H, W] in [0, 1], the units of epsilon."""
    assert isinstance(images, Tensor)  # image files of other data sets
    return images.permute(0, 3, 1, 2).float() / 255


def training_batches(batch_size: int = 64, seed: int = 0) -> DataLoader:
    """Batches of the 1,437 training images and their labels."""
    digits = load_dataset("digits")
    images = TensorDataset(pixels(digits.train_images), digits.train_labels)
    order = torch.Generator().manual_seed(seed)
    return DataLoader(images, batch_size, shuffle=True, drop_last=True, generator=order)


def evaluation_batches(batch_size: int = 360) -> DataLoader:
    """Batches of the 360 test images and their labels."""
    digits = load_dataset("digits")
    images = TensorDataset(pixels(digits.test_images), digits.test_labels)
    # Own generator: a loader draws a seed for its workers, which would change the random numbers of the training.
    return DataLoader(images, batch_size, generator=torch.Generator())


def robust_teacher() -> nn.Module:
    """Loads a network of 471 k parameters, adversarially trained on these digits at EPSILON."""
    return load_model("cnn-72-s1", in_channels=1, checkpoint=checkpoint_path("shipped:demo-teacher"))
