"""Fashion-MNIST against the arrays its files were written from, and broken files against their messages."""

import gzip
import hashlib
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from errors import error_of

from fastadaad.data import load_dataset
from fastadaad.data.datasets import fashion_mnist

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
    """Encodes IDX: two zero bytes, 8 for uint8, the number of dimensions, the dimensions, the values."""
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
    """Replaces the folder of the Debian package, so that an installed package has no influence."""
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path / "debian"


@pytest.mark.parametrize("layout", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [(), tuple(FASHION_ARRAYS), (IMAGES, "t10k-labels-idx1-ubyte")])
def test_fashion_mnist_from_root(tmp_path, layout, packed):
    write_fashion_mnist(tmp_path / "root" / layout, packed)
    assert_is_the_written_set(load_dataset("fashion-mnist", root=tmp_path / "root"))


def test_a_file_unpacked_by_a_browser_may_keep_its_gz_suffix(tmp_path):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / IMAGES).rename(folder / f"{IMAGES}.gz")
    assert_is_the_written_set(load_dataset("fashion-mnist", root=folder))


def test_fashion_mnist_from_the_debian_folder_if_root_is_incomplete(tmp_path, debian_folder):
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


# Headers without values: 2^32 - 1 in each dimension; 2^32 - 1 images without a pixel.
PROMISES_ALL = b"\0\0\x08\x03" + b"\xff" * 12
PROMISES_0 = b"\0\0\x08\x03\xff\xff\xff\xff" + bytes(23536 - 8)
GOOD_IMAGES, GOOD_LABELS = idx(FASHION_ARRAYS[IMAGES]), idx(FASHION_ARRAYS[LABELS])


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES, mtime=0)[:-500], "cannot be read (Compressed file ended before"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES, mtime=0)[:-8] + bytes(8), "cannot be read (CRC check failed"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES, mtime=0)[:40] + bytes(5000), "cannot be read ("),
        (f"{IMAGES}.gz", b"<!DOCTYPE html><html>", "is a web page, not an IDX file"),
        (IMAGES, b"", "is not an IDX file of 3 dimensions: it starts with b''"),
        (IMAGES, GOOD_LABELS, "is not an IDX file of 3 dimensions: it starts with"),
        (LABELS, GOOD_IMAGES, "is not an IDX file of 1 dimensions: it starts with"),
        (IMAGES, b"\0\0\x0d" + GOOD_IMAGES[3:], "is not an IDX file of 3 dimensions: it starts with"),
        (IMAGES, GOOD_IMAGES[:-1], "has 23535 bytes, not 23536 as in its header"),
        (IMAGES, GOOD_IMAGES + b"\0", "has 23537 bytes, not 23536 as in its header"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES + b"\0", mtime=0), "has too many bytes, not 23536 as in its header"),
        (f"{IMAGES}.gz", gzip.compress(GOOD_IMAGES[:-1], mtime=0), "has 23535 bytes, not 23536 as in its header"),
        (f"{IMAGES}.gz", gzip.compress(PROMISES_ALL, mtime=0), "is refused: its 26 bytes are to unpack to 7922816245"),
        (IMAGES, PROMISES_ALL, "has 16 bytes, not 79228162458924105385300197391 as in its header"),
        (IMAGES, PROMISES_0, "has 23536 bytes, not 16 as in its header"),
        (IMAGES, idx(np.zeros((30, 32, 32), np.uint8)), "holds images of 32x32 pixels, not 28x28"),
        (LABELS, idx(np.zeros(29, np.uint8)), f"holds 29 labels for the 30 images of {IMAGES}"),
        (LABELS, idx(np.full(30, 10, np.uint8)), "holds the label 10, outside 0..9"),
    ],
)
def test_broken_file_is_named(tmp_path, name, content, problem):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / name.removesuffix(".gz")).unlink()
    (folder / name).write_bytes(content)
    message = error_of("fashion-mnist", folder)
    assert message.startswith(f"{folder / name} {problem}")
    assert "delete it" in message
    assert APT in message


def test_empty_set_is_refused(tmp_path):
    folder = write_fashion_mnist(tmp_path / "root")
    (folder / IMAGES).write_bytes(idx(np.zeros((0, 28, 28), np.uint8)))
    (folder / LABELS).write_bytes(idx(np.zeros(0, np.uint8)))
    assert error_of("fashion-mnist", folder).startswith(f"{folder / LABELS} is empty: ")


def test_unreadable_file_is_named(tmp_path, monkeypatch):
    folder = write_fashion_mnist(tmp_path / "root")

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert error_of("fashion-mnist", folder).startswith(f"{folder / IMAGES} cannot be read ([Errno 13] Permission")


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    """Refuses a file of 130 kB that unpacks to 128 MiB, with a header of that size and with a header of 30 images."""
    folder = write_fashion_mnist(tmp_path / "root", (IMAGES,))
    path, num_images = folder / f"{IMAGES}.gz", 2**27 // 784
    honest = struct.pack(">4I", 0x0803, num_images, 28, 28)
    for header, problem in ((honest, "is refused: its "), (GOOD_IMAGES[:16], "has too many bytes, not ")):
        path.write_bytes(gzip.compress(header + bytes(784 * num_images)))
        tracemalloc.start()
        try:
            message = error_of("fashion-mnist", folder)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert message.startswith(f"{path} {problem}")
        assert peak < 2**22


def test_a_download_with_another_sha256_is_refused(tmp_path, monkeypatch):
    def forged(root, download):
        folder = Path(root) / "FashionMNIST/raw"
        write_fashion_mnist(folder)
        (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"of the right MD5")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", forged)
    message = error_of("fashion-mnist", tmp_path, download=True)
    sha256 = hashlib.sha256(b"of the right MD5").hexdigest()
    assert f"(t10k-labels-idx1-ubyte.gz: its sha256 is {sha256}, not 67da17c7" in message
    assert not list(tmp_path.rglob("t10k-labels*"))  # the next load would take it
