"""Small trees of image files with one folder per class."""

from pathlib import Path

import numpy as np
from PIL import Image

TRAIN = ("cat/a.png", "cat/b.png", "cat/c.jpg", "dog/a.png", "dog/b.png", "dog/c.png", "dog/d.png")
TEST = ("cat/a.png", "dog/a.png", "dog/e.jpg")
MIN_SIZE, MAX_SIZE = 9, 23  # of either side, in pixels


def write_tree(root: Path) -> Path:
    """Writes TRAIN and TEST with random pixels and different sizes; returns `root`."""
    generator = np.random.default_rng(0)
    for split, names in (("train", TRAIN), ("test", TEST)):
        for name in names:
            path = root / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = (*generator.integers(MIN_SIZE, MAX_SIZE, 2), 3)
            Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(path, quality=95)
    return root
