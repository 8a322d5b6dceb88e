"""Tiny-ImageNet from a small copy of its layout, decoded by another library, and each way it can be broken."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastadaad.data import DataError, load_dataset

WORDNET_IDS = ("n03", "n01", "n02")  # wnids.txt is not in alphabetical order
LABELS = {"n01": 0, "n02": 1, "n03": 2}
VALIDATION = ("n02", "n03", "n01", "n02")


def save_image(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3) if mode == "RGB" else (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of two training images, one of them grey, and four validation images."""
    root = tmp_path / "tiny-imagenet-200"
    for number, wordnet_id in enumerate(WORDNET_IDS):
        for index in range(2):
            path = root / "train" / wordnet_id / "images" / f"{wordnet_id}_{index}.JPEG"
            save_image(path, seed=10 * number + index, mode="L" if index else "RGB")
    for index in range(len(VALIDATION)):
        save_image(root / "val" / "images" / f"val_{index}.JPEG", seed=100 + index)
    (root / "wnids.txt").write_text("".join(f"{wordnet_id}\n" for wordnet_id in WORDNET_IDS))
    lines = [f"val_{index}.JPEG\t{wordnet_id}\t0\t0\t62\t62\n" for index, wordnet_id in enumerate(VALIDATION)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize("above", [False, True])
def test_images_and_labels_are_those_of_the_files(folder, above):
    dataset = load_dataset("tiny-imagenet", folder.parent if above else folder)
    assert dataset.class_names == ("n01", "n02", "n03")
    assert dataset.train_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.test_labels.tolist() == [LABELS[wordnet_id] for wordnet_id in VALIDATION]
    train = [folder / "train" / name / "images" / f"{name}_{index}.JPEG" for name in sorted(LABELS) for index in (0, 1)]
    test = [folder / "val" / "images" / f"val_{index}.JPEG" for index in range(4)]
    for paths, images in ((train, dataset.train_images), (test, dataset.test_images)):
        for path, image in zip(paths, images.numpy(), strict=True):
            expected = np.asarray(Image.open(path).convert("RGB"))
            # Two JPEG decoders may round differently, by a level or two.
            assert np.abs(image.astype(int) - expected).max() <= 2, path


def error(folder: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset("tiny-imagenet", folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_missing_or_broken_is_named(folder, tmp_path):
    assert "wnids.txt does not exist: set data.root=FOLDER" in error(tmp_path / "elsewhere")
    assert "is not downloaded by this program" in error(folder, download=True)
    broken = folder / "val" / "images" / "val_2.JPEG"
    broken.write_bytes(broken.read_bytes()[:100])
    assert f"{broken} cannot be decoded" in error(folder)
    Image.new("RGB", (32, 64)).save(broken)
    assert f"{broken} has 64x32 pixels, not 64x64" in error(folder)
    annotations = folder / "val" / "val_annotations.txt"
    annotations.write_text(annotations.read_text().replace("n03", "n99"))
    assert f"{annotations} has the line 'val_1.JPEG\\tn99" in error(folder)
    annotations.unlink()
    assert f"{annotations} does not exist" in error(folder)
    for path in (folder / "train" / "n02" / "images").iterdir():
        path.unlink()
    assert "n02/images holds no .JPEG files" in error(folder)
