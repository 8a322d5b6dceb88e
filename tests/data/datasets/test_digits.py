"""Digits against the scans of scikit-learn."""

from collections import Counter

import numpy as np
import torch
from sklearn.datasets import load_digits

from fastadaad.data import load_dataset


def test_digits_match_the_scans_of_scikit_learn():
    scans = load_digits()
    scaled = (scans.images.astype(int) * 255 + 8) // 16  # round half up, in integers
    source = Counter(
        (image.astype(np.uint8).tobytes(), label) for image, label in zip(scaled, scans.target, strict=True)
    )
    digits = load_dataset("digits")
    parts = ((digits.train_images, digits.train_labels), (digits.test_images, digits.test_labels))
    ours = Counter(
        (image.numpy().tobytes(), int(label))
        for images, labels in parts
        for image, label in zip(images, labels, strict=True)
    )
    assert ours == source
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.train_images.max() == 255
    assert digits.class_names == tuple("0123456789")


def test_digits_test_set_is_fixed_and_balanced():
    first, second = load_dataset("digits"), load_dataset("digits")
    assert torch.equal(first.test_images, second.test_images)
    fraction = first.test_labels.bincount() / (first.train_labels.bincount() + first.test_labels.bincount())
    assert ((fraction - 360 / 1797).abs() < 1 / 170).all()  # within one image of a class of about 180
