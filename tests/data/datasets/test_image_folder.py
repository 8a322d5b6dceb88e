"""Folders of image files: the files and labels that are found, and trees that are refused."""

import os
from pathlib import Path

import pytest
import torch
from errors import error_of
from torchvision.datasets.folder import find_classes, make_dataset

from fastadaad.data import ImageFiles, load_dataset

TRAIN = ("cat/a.jpg", "cat/b.PNG", "Dog/10.jpeg", "Dog/9.webp", "Dog/puppies/small/x.JPEG", "eel/e.gif")
TEST = ("Dog/1.bmp", "cat/2.tif", "eel/3.ppm", "eel/4.pgm")


def write(folder: Path, names=()) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened")


@pytest.fixture(params=["test", "val"])
def root(request, tmp_path) -> Path:
    """Writes a valid tree; the contents of its files do not matter."""
    write(tmp_path / "root" / "train", TRAIN)
    write(tmp_path / "root" / request.param, TEST)
    return tmp_path / "root"


@pytest.fixture
def imagenet(tmp_path) -> Path:
    write(tmp_path / "train", TRAIN)
    write(tmp_path / "val", TEST)
    return tmp_path


def load(root: Path, **options):
    return load_dataset("folder", root, image_size=32, **options)


def error(root: Path) -> str:
    return error_of("folder", root, image_size=32)


def test_images_are_sorted_by_class_and_name(root):
    dataset = load(root)
    assert dataset.class_names == ("Dog", "cat", "eel")  # capitals first, the order of Python strings
    train = ("Dog/10.jpeg", "Dog/9.webp", "Dog/puppies/small/x.JPEG", "cat/a.jpg", "cat/b.PNG", "eel/e.gif")
    assert dataset.train_images.names == train
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 2]
    assert dataset.test_images.names == TEST
    assert dataset.test_labels.tolist() == [0, 1, 2, 2]
    assert dataset.train_labels.dtype == torch.int64
    assert all(dataset.train_images.path(index).is_file() for index in range(6))
    assert all(dataset.test_images.path(index).is_file() for index in range(4))


def test_classes_and_labels_match_torchvisions_image_folder(root):
    dataset = load(root)
    folder = str(root / "train")
    class_names, label_of = find_classes(folder)
    theirs = make_dataset(folder, label_of, is_valid_file=lambda path: True)
    ours = [(str(dataset.train_images.path(index)), label) for index, label in enumerate(dataset.train_labels.tolist())]
    assert list(dataset.class_names) == class_names
    assert sorted(ours) == sorted(theirs)


def test_settings_of_image_files_are_kept(root):
    images = load(root, center_share=0.75, on_error="skip").test_images
    assert isinstance(images, ImageFiles)
    assert (images.image_size, images.center_share, images.on_error) == (32, 0.75, "skip")
    assert (load(root).train_images.center_share, load(root).train_images.on_error) == (1.0, "raise")


def test_imagenet_has_its_usual_sizes_by_default(imagenet):
    images = load_dataset("imagenet", imagenet).test_images
    assert (images.image_size, images.center_share) == (224, 0.875)
    images = load_dataset("imagenet", imagenet, image_size=64, center_share=1.0).train_images
    assert (images.image_size, images.center_share) == (64, 1.0)


def test_the_test_set_of_imagenet_is_val(imagenet):
    """Ignores its test images, which have no labels and no class folders."""
    write(imagenet / "test", ["ILSVRC2012_test_00000001.JPEG"])
    dataset = load_dataset("imagenet", imagenet)
    assert dataset.name == "imagenet"
    assert dataset.test_images.root == imagenet / "val"


@pytest.mark.filterwarnings("error")
def test_hidden_files_and_folders_are_ignored(root):
    hidden = (".DS_Store", ".thumbnails/a.jpg", "cat/._a.jpg", "cat/.DS_Store", "eel/.cache/e.jpg")
    before = load(root).train_images.names
    write(root / "train", hidden)
    assert load(root).train_images.names == before


def test_other_files_are_counted_in_one_warning(root):
    before = load(root).train_images.names
    write(root / "train", ["readme.txt", "cat/Thumbs.db", "Dog/puppies/names.csv", "Dog/jpg"])
    with pytest.warns(UserWarning, match="have no suffix of an image") as warned:
        assert load(root).train_images.names == before
    assert [str(warning.message) for warning in warned] == [
        f"4 files have no suffix of an image and are left out, such as {root / 'train' / 'readme.txt'}"
    ]


def test_test_takes_precedence_over_val_with_a_warning(imagenet):
    write(imagenet / "test", ["Dog/t.png", "cat/t.png", "eel/t.png"])
    with pytest.warns(UserWarning, match="is the test set") as warned:
        dataset = load(imagenet)
    assert str(warned[0].message) == f"{imagenet / 'test'} is the test set, {imagenet / 'val'} is left out"
    assert dataset.test_images.names == ("Dog/t.png", "cat/t.png", "eel/t.png")


def test_links_to_folders_and_files_are_followed(root, tmp_path):
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").mkdir()
    for name in ("cat", "Dog", "eel"):
        (root / "train" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "elsewhere" / "cat" / "c.jpg").symlink_to(tmp_path / "elsewhere" / "cat" / "a.jpg")
    names = load(root).train_images.names
    assert len(names) == len(TRAIN) + 1
    assert "cat/c.jpg" in names


def test_a_folder_that_links_to_itself_is_named(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    message = error(root)
    assert message.startswith(f"{root / 'train' / 'cat'}/again/again/")
    assert message.endswith(" is 8 folders below its class: does a link lead back up? delete it")


def test_two_folders_that_link_to_themselves_are_named_quickly(root):
    """Stops early, as each level doubles the files: the system's limit of 40 levels means 10**12 files."""
    for name in ("again", "once more"):
        (root / "train" / "cat" / name).symlink_to(root / "train" / "cat")
    assert error(root).endswith("does a link lead back up? delete it")


def test_images_seven_folders_below_their_class_are_read(root):
    name = "/".join(["cat", *"abcdefg", "image.jpg"])
    write(root / "train", [name])
    assert name in load(root).train_images.names


def test_names_that_are_not_utf_8_are_kept(root):
    name = os.fsdecode(b"cat/\xff\xfe.jpg")
    write(root / "train", [name])
    assert name in load(root).train_images.names


def test_image_size_is_required(root):
    message = error_of("folder", root)
    assert message == "data.name=folder resizes its images: set data.image_size to a side in pixels, such as 64"


def test_missing_folders_are_named(root, tmp_path):
    remedy = "set data.root=FOLDER to the folder that holds train and test or val"
    missing = tmp_path / "missing"
    assert error(missing) == f"{missing} does not exist: {remedy}"
    assert error(root / "train") == f"{root / 'train' / 'train'} does not exist: {remedy}"


def test_a_missing_test_set_is_named(tmp_path):
    write(tmp_path / "train", TRAIN)
    assert error(tmp_path) == f"{tmp_path} holds train but no test or val: put the test images into {tmp_path / 'val'}"
    write(tmp_path / "test", TEST)
    assert error_of("imagenet", tmp_path).startswith(f"{tmp_path} holds train but no val: ")


SORT = "sort the images into class folders, the same for training and test"


def test_a_flat_validation_folder_is_refused(tmp_path):
    write(tmp_path / "train", TRAIN)
    write(tmp_path / "val", ["ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000001.JPEG"])
    assert error_of("imagenet", tmp_path) == (
        f"{tmp_path / 'val'} holds 2 images and no class folders, such as ILSVRC2012_val_00000001.JPEG: {SORT}"
    )


def test_images_beside_class_folders_are_refused(root):
    write(root / "train", ["stray.jpg"])
    assert error(root) == f"{root / 'train'} holds 1 images beside its 3 class folders, such as stray.jpg: {SORT}"


def test_a_folder_without_classes_is_refused(tmp_path):
    write(tmp_path / "train", ["n01440764.tar"])
    write(tmp_path / "val", TEST)
    assert error(tmp_path) == f"{tmp_path / 'train'} holds no class folders: {SORT}"


def test_the_layout_of_tiny_imagenet_is_recognised(tmp_path):
    write(tmp_path / "train", [f"n01/images/{number}.JPEG" for number in range(3)])
    write(tmp_path / "val", ["images/val_0.JPEG", "val_annotations.txt"])
    write(tmp_path / "test", ["images/test_0.JPEG"])
    assert error(tmp_path) == f"{tmp_path} has the layout of Tiny-ImageNet's archive: set data.name=tiny-imagenet"


@pytest.mark.parametrize(("kept", "lacking"), [(1, 2), (2, 1)])
def test_classes_of_training_and_test_must_be_the_same(tmp_path, kept, lacking):
    splits = [tmp_path / "train", tmp_path / "test"]
    for split in splits:
        write(split, ["a/1.jpg", "c/1.jpg"])
    write(splits[kept - 1], ["b/1.jpg", "d/1.jpg"])
    assert error(tmp_path) == (
        f"{splits[kept - 1] / 'b'} has no counterpart in {splits[lacking - 1]}: give training and test the same class "
        "folders (2 differ)"
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_empty_class_is_named(imagenet, split):
    (imagenet / split / "cat" / "empty").mkdir()
    write(imagenet / split, ["emu/notes.txt"])
    assert error(imagenet) == f"{imagenet / split / 'emu'} holds no images: put some in, or delete the folder"
