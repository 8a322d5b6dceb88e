"""Handwritten digits, 1,797 scans that scikit-learn contains."""

import numpy as np
import torch

from fastadaad.data.dataset import Dataset
from fastadaad.data.datasets.source import Source
from fastadaad.data.splits import split_validation

TEST_SIZE = 360  # about 20 %
SPLIT_SEED = 0


def load_digits(source: Source) -> Dataset:
    """Reads images of 8x8 pixels, scaled from 0..16 to 0..255; needs neither a folder nor a download.

    The test set is a fixed class-balanced draw. The scans are ordered by writer, so the last 20 % would also measure
    the change of writers.
    """
    from sklearn import datasets

    scans = datasets.load_digits()
    images = torch.from_numpy(np.round(scans.images * (255 / 16)).astype(np.uint8)).unsqueeze(3)
    labels = torch.from_numpy(scans.target.astype(np.int64))
    train, test = split_validation(labels, TEST_SIZE, SPLIT_SEED)
    return Dataset(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=tuple(str(digit) for digit in range(10)),
    )
