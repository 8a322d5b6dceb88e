"""CIFAR against the arrays its files were written from, and broken files against their messages."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
import torchvision
from errors import error_of

from fastadaad.data import load_dataset

RNG = np.random.default_rng(0)
DOWNLOAD = "data.download=true"
CIFAR = {
    "cifar10": (torchvision.datasets.CIFAR10, "labels", "label_names"),
    "cifar100": (torchvision.datasets.CIFAR100, "fine_labels", "fine_label_names"),
}


@pytest.fixture(params=CIFAR)
def cifar(request, tmp_path, monkeypatch):
    """Writes a small set in torchvision's layout; returns (name, folder, CHW planes and labels per file)."""
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


def test_the_unpacked_folder_itself_is_accepted(cifar, tmp_path):
    name, folder, _ = cifar
    by_folder, by_root = (load_dataset(name, root=root).train_images for root in (folder, tmp_path))
    assert torch.equal(by_folder, by_root)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [("cut", "is truncated or corrupt"), ("removed", "does not exist"), ("html", "is a web page")],
)
def test_damaged_cifar_file_is_named(cifar, tmp_path, damage, problem):
    name, folder, written = cifar
    for file_name in (list(written)[-1], CIFAR[name][0].meta["filename"]):
        path = folder / file_name
        content = path.read_bytes()
        path.write_bytes(b"<html>Not found</html>" if damage == "html" else content[:-1])
        if damage == "removed":
            path.unlink()
        message = error_of(name, tmp_path)
        assert message.startswith(f"{path} {problem}")
        assert DOWNLOAD in message
        path.write_bytes(content)


def test_failed_cifar_download_is_named(tmp_path, monkeypatch):
    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", no_network)
    message = error_of("cifar10", tmp_path, download=True)
    first = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    assert message.startswith(f"{first} does not exist (the download failed: no route to host): set data.download=true")


def test_a_web_page_instead_of_the_archive_is_named(tmp_path):
    archive = tmp_path / torchvision.datasets.CIFAR100.filename
    archive.write_text("<!DOCTYPE html><html><body>Service unavailable</body></html>")
    message = error_of("cifar100", tmp_path)
    assert message.startswith(f"{archive} is a web page, not an archive: ")
    assert DOWNLOAD in message


class Attack:
    """Object whose pickle creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_file_with_a_wrong_checksum_is_not_unpickled(cifar, tmp_path):
    name, folder, written = cifar
    for file_name in (*written, CIFAR[name][0].meta["filename"]):
        content = (folder / file_name).read_bytes()
        (folder / file_name).write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
        assert error_of(name, tmp_path).startswith(f"{folder / file_name} is truncated or corrupt")
        (folder / file_name).write_bytes(content)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", CIFAR)
def test_an_archive_with_a_wrong_checksum_is_not_unpacked(tmp_path, monkeypatch, name):
    """Covers local and downloaded archives; torchvision would let their members leave the folder."""
    root = tmp_path / "root"
    root.mkdir()
    archive = root / CIFAR[name][0].filename

    def plant(url="", destination=archive):
        with tarfile.open(destination, "w:gz") as file:
            for member in ("../evil", f"{tmp_path}/evil", "link/evil"):
                file.addfile(tarfile.TarInfo(member))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
            file.addfile(link)

    plant()
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", plant)
    assert "(the download failed: File not found or corrupted.)" in error_of(name, root, download=True)
    assert list(root.iterdir()) == [archive]
    assert list(tmp_path.iterdir()) == [root]
