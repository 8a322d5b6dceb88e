"""Data sets against their sources, and each kind of broken file against its one-line message."""

import gzip
import hashlib
import pickle
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from fastadaad.data import DataError, datasets, load_dataset

RNG = np.random.default_rng(0)
FASHION_ARRAYS = {
    "train-images-idx3-ubyte": RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8),
    "train-labels-idx1-ubyte": RNG.integers(0, 10, 30, dtype=np.uint8),
    "t10k-images-idx3-ubyte": RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8),
    "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 20, dtype=np.uint8),
}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
APT, ROOT, DOWNLOAD = "apt-get install dataset-fashion-mnist", "data.root=", "data.download=true"


def idx(array: np.ndarray) -> bytes:
    """IDX: two zero bytes, 8 for uint8, the number of dimensions, the dimensions, the values."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion_mnist(folder: Path, packed: tuple[str, ...] = ()) -> Path:
    folder.mkdir(parents=True)
    for name, array in FASHION_ARRAYS.items():
        if name in packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
        else:
            (folder / name).write_bytes(idx(array))
    return folder


def assert_is_the_written_set(dataset) -> None:
    for name, images, labels in (
        ("train", dataset.train_images, dataset.train_labels),
        ("t10k", dataset.test_images, dataset.test_labels),
    ):
        np.testing.assert_array_equal(images.numpy()[..., 0], FASHION_ARRAYS[f"{name}-images-idx3-ubyte"])
        np.testing.assert_array_equal(labels.numpy(), FASHION_ARRAYS[f"{name}-labels-idx1-ubyte"])
        assert (images.dtype, labels.dtype, images.shape[1:]) == (torch.uint8, torch.int64, (28, 28, 1))


@pytest.fixture(autouse=True)
def debian_folder(tmp_path, monkeypatch) -> Path:
    """Stands in for the folder of the Debian package, so that an installed one has no influence."""
    monkeypatch.setattr(datasets, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    return tmp_path / "debian"


def error_of(name: str, root: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, root=root, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_digits_are_scikit_learns_scans():
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
    share = first.test_labels.bincount() / (first.train_labels.bincount() + first.test_labels.bincount())
    assert ((share - 360 / 1797).abs() < 1 / 170).all()  # within one image of a class of about 180


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [(), tuple(FASHION_ARRAYS), (IMAGES, "t10k-labels-idx1-ubyte")])
def test_fashion_mnist_from_root(tmp_path, layout, packed):
    write_fashion_mnist(tmp_path / "root" / layout, packed)
    assert_is_the_written_set(load_dataset("fashion-mnist", root=tmp_path / "root"))


def test_fashion_mnist_unpacked_by_a_browser_under_its_packed_name(tmp_path):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / IMAGES).rename(folder / f"{IMAGES}.gz")
    assert_is_the_written_set(load_dataset("fashion-mnist", root=folder))


def test_fashion_mnist_from_the_debian_folder_where_root_is_incomplete(tmp_path, debian_folder):
    write_fashion_mnist(debian_folder, tuple(FASHION_ARRAYS))
    (write_fashion_mnist(tmp_path / "root") / LABELS).unlink()
    assert_is_the_written_set(load_dataset("fashion-mnist", root=tmp_path / "root"))


@pytest.mark.parametrize("variable", ["FASTADAAD_DATA", "HOME"])
def test_default_root(tmp_path, monkeypatch, variable):
    monkeypatch.delenv("FASTADAAD_DATA", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    write_fashion_mnist(tmp_path / {"FASTADAAD_DATA": "", "HOME": ".cache/fastadaad"}[variable] / "FashionMNIST/raw")
    assert_is_the_written_set(load_dataset("fashion-mnist"))


def test_fashion_mnist_download(tmp_path, monkeypatch):
    def torchvision_stand_in(root, download):
        assert download
        write_fashion_mnist(Path(root) / "FashionMNIST/raw")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", torchvision_stand_in)
    assert_is_the_written_set(load_dataset("fashion-mnist", root=tmp_path / "root", download=True))


def test_failed_fashion_mnist_download(tmp_path, monkeypatch):
    def no_network(root, download):
        raise RuntimeError("Error downloading\n train-images")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", no_network)
    message = error_of("fashion-mnist", tmp_path, download=True)
    assert message.startswith(f"Fashion-MNIST could not be downloaded to {tmp_path} (Error downloading train-images): ")
    assert APT in message


def test_missing_fashion_mnist_names_file_and_remedies(tmp_path):
    message = error_of("fashion-mnist", tmp_path)
    assert message.startswith(f"{tmp_path / IMAGES} does not exist: ")
    assert all(remedy in message for remedy in (APT, ROOT, DOWNLOAD))


def test_the_one_missing_file_is_named(tmp_path):
    folder = write_fashion_mnist(tmp_path / "FashionMNIST/raw")
    (folder / LABELS).unlink()
    assert error_of("fashion-mnist", tmp_path).startswith(f"{folder / LABELS} does not exist: ")


GOOD_IMAGES, GOOD_LABELS = idx(FASHION_ARRAYS[IMAGES]), idx(FASHION_ARRAYS[LABELS])


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES)[:-500], "cannot be read (Compressed file ended before"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES)[:-8] + bytes(8), "cannot be read (CRC check failed"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES)[:40] + bytes(5000), "cannot be read ("),
        (f"{IMAGES}.gz", b"<!DOCTYPE html><html>", "is no IDX file of 3 dimensions: it starts with b'<!DOCTYP'"),
        (IMAGES, b"", "is no IDX file of 3 dimensions: it starts with b''"),
        (IMAGES, GOOD_LABELS, "is no IDX file of 3 dimensions: it starts with"),
        (LABELS, GOOD_IMAGES, "is no IDX file of 1 dimensions: it starts with"),
        (IMAGES, b"\0\0\x0d" + GOOD_IMAGES[3:], "is no IDX file of 3 dimensions: it starts with"),
        (IMAGES, GOOD_IMAGES[:-1], "has 23535 bytes where its header promises 23536"),
        (IMAGES, GOOD_IMAGES + b"\0", "has 23537 bytes where its header promises 23536"),
        (IMAGES, idx(np.zeros((30, 32, 32), np.uint8)), "holds images of 32x32 pixels, not 28x28"),
        (LABELS, idx(np.zeros(29, np.uint8)), f"holds 29 labels for the 30 images of {IMAGES}"),
        (LABELS, idx(np.full(30, 10, np.uint8)), "holds the label 10, outside 0..9"),
    ],
)
def test_broken_file_is_named(tmp_path, name, content, complaint):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / name.removesuffix(".gz")).unlink()
    (folder / name).write_bytes(content)
    message = error_of("fashion-mnist", folder)
    assert message.startswith(f"{folder / name} {complaint}")
    assert "delete it" in message
    assert APT in message


def test_empty_set_is_refused(tmp_path):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / IMAGES).write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    (folder / LABELS).write_bytes(idx(np.zeros(0, np.uint8)))
    assert error_of("fashion-mnist", folder).startswith(f"{folder / LABELS} is empty: ")


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    folder = write_fashion_mnist(tmp_path / "root")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert error_of("fashion-mnist", folder).startswith(f"{folder / IMAGES} cannot be read ([Errno 13] Permission")


CIFAR = {
    "cifar10": (torchvision.datasets.CIFAR10, "labels", "label_names"),
    "cifar100": (torchvision.datasets.CIFAR100, "fine_labels", "fine_label_names"),
}


@pytest.fixture(params=CIFAR)
def cifar(request, tmp_path, monkeypatch):
    """Writes a small set in torchvision's layout: (name, folder of the files, CHW planes and labels per file)."""
    name = request.param
    torchvision_class, labels_key, names_key = CIFAR[name]
    folder = tmp_path / torchvision_class.base_folder
    folder.mkdir()
    written = {}

    def write(file_name: str, content: dict) -> str:
        data = pickle.dumps(content)
        (folder / file_name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    for attribute in ("train_list", "test_list"):
        with_md5 = []
        for file_name, _ in getattr(torchvision_class, attribute):
            planes, labels = RNG.integers(0, 256, (4, 3072), dtype=np.uint8), RNG.integers(0, 3, 4).tolist()
            with_md5.append([file_name, write(file_name, {"data": planes, labels_key: labels})])
            written[file_name] = planes.reshape(4, 3, 32, 32), labels
        monkeypatch.setattr(torchvision_class, attribute, with_md5)
    meta = dict(torchvision_class.meta)
    meta["md5"] = write(meta["filename"], {names_key: ["a", "b", "c"]})
    monkeypatch.setattr(torchvision_class, "meta", meta)
    return name, folder, written


def test_cifar_is_read_as_written(cifar, tmp_path):
    name, _, written = cifar
    dataset = load_dataset(name, root=tmp_path)
    images = torch.cat([dataset.train_images, dataset.test_images]).permute(0, 3, 1, 2)
    labels = torch.cat([dataset.train_labels, dataset.test_labels])
    np.testing.assert_array_equal(images, np.concatenate([planes for planes, _ in written.values()]))
    assert labels.tolist() == [label for _, file_labels in written.values() for label in file_labels]
    assert len(dataset.test_labels) == 4
    assert (images.dtype, labels.dtype, dataset.class_names) == (torch.uint8, torch.int64, ("a", "b", "c"))


@pytest.mark.parametrize(("damage", "complaint"), [("cut", "is truncated or corrupt"), ("removed", "does not exist")])
def test_damaged_cifar_file_is_named(cifar, tmp_path, damage, complaint):
    name, folder, written = cifar
    for file_name in (list(written)[-1], CIFAR[name][0].meta["filename"]):
        path = folder / file_name
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        if damage == "removed":
            path.unlink()
        message = error_of(name, tmp_path)
        assert message.startswith(f"{path} {complaint}: ")
        assert DOWNLOAD in message
        path.write_bytes(content)


def test_failed_cifar_download_is_named(tmp_path, monkeypatch):
    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    message = error_of("cifar10", tmp_path, download=True)
    first = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    assert message.startswith(f"{first} does not exist (the download failed: no route to host): set data.download=true")


def test_unknown_name_lists_the_known(tmp_path):
    assert error_of("mnist", tmp_path) == (
        "data set 'mnist' is unknown: use one of digits, fashion-mnist, cifar10, cifar100, tiny-imagenet"
    )
