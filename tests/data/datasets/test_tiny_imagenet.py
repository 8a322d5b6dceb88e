"""Tiny-ImageNet from a small copy of its layout, image by image, and broken files against their messages."""

import hashlib
import os
import shutil
import stat
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from errors import error_of
from PIL import Image

from fastadaad.data import load_dataset
from fastadaad.data.datasets import tiny_imagenet
from fastadaad.runtime.untrusted_files import TEXT_BYTES

WORDNET_IDS = ("n03", "n01", "n02")  # wnids.txt is not in alphabetical order
LABELS = {"n01": 0, "n02": 1, "n03": 2}
VALIDATION = ("n02", "n03", "n01", "n02")


def save_image(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3) if mode == "RGB" else (64, 64), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Writes three classes of two training images, one of them grey, and four validation images."""
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
            np.testing.assert_array_equal(image, np.asarray(Image.open(path).convert("RGB")), str(path))


def error(folder: Path, **options) -> str:
    return error_of("tiny-imagenet", folder, **options)


def test_a_missing_or_broken_file_is_named(folder, tmp_path):
    assert "wnids.txt does not exist: set data.root=FOLDER" in error(tmp_path / "elsewhere")
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
    (folder / "wnids.txt").write_text("<!DOCTYPE html>\n")
    assert f"{folder / 'wnids.txt'} is a web page: delete it, then set data.root=FOLDER" in error(folder)


@pytest.mark.parametrize("name", ["..", "../n01", "/etc", "n01/..", "a\0b", "a\\b", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(folder, name):
    classes, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    for path, line in ((annotations, f"{name}\tn01\t0\n"), (classes, f"{name}\n")):
        path.write_text(path.read_text() + line)
        assert error(folder) == f"{path} has the name {name!r}, which leads elsewhere: {tiny_imagenet.REMEDY}"


def test_a_list_that_is_binary_or_too_long_is_refused(folder):
    for name in ("val/val_annotations.txt", "wnids.txt"):
        (folder / name).write_bytes(b"\xff\n")
        assert f"{folder / name} cannot be read ('utf-8' codec" in error(folder)
        os.truncate(folder / name, TEXT_BYTES + 1)
        assert f"{folder / name} cannot be read (it has {TEXT_BYTES + 1} bytes and at most {TEXT_BYTES}" in error(
            folder
        )


def test_a_list_without_a_last_newline_is_read_to_its_end(folder):
    for path in (folder / "wnids.txt", folder / "val" / "val_annotations.txt"):
        path.write_text(path.read_text().rstrip("\n"))
    dataset = load_dataset("tiny-imagenet", folder)
    assert dataset.class_names == ("n01", "n02", "n03")
    assert dataset.test_labels.tolist() == [LABELS[wordnet_id] for wordnet_id in VALIDATION]


def test_undecodable_files_are_skipped_with_a_warning(folder):
    """Gives the arrays of a set without these files, and one warning per split."""
    broken_train = folder / "train" / "n02" / "images" / "n02_0.JPEG"
    broken_test = folder / "val" / "images" / "val_1.JPEG"
    whole = load_dataset("tiny-imagenet", folder)
    for path in (broken_train, broken_test):
        path.write_bytes(path.read_bytes()[:200])
    with pytest.warns(UserWarning, match="are left out") as warned:
        dataset = load_dataset("tiny-imagenet", folder, on_error="skip")
    assert [str(warning.message).partition("(")[0] for warning in warned] == [
        f"1 training images of tiny-imagenet are left out, the first: {broken_train} cannot be decoded ",
        f"1 validation images of tiny-imagenet are left out, the first: {broken_test} cannot be decoded ",
    ]
    kept_train, kept_test = [0, 1, 3, 4, 5], [0, 2, 3]
    assert torch.equal(dataset.train_images, whole.train_images[kept_train])
    assert torch.equal(dataset.train_labels, whole.train_labels[kept_train])
    assert torch.equal(dataset.test_images, whole.test_images[kept_test])
    assert torch.equal(dataset.test_labels, whole.test_labels[kept_test])


def publish(folder: Path, to: Path, monkeypatch) -> Path:
    """Packs the set into an archive like the published one, in the folder `to`."""
    path = Path(shutil.make_archive(str(to / "tiny-imagenet-200"), "zip", folder.parent, folder.name))
    declare(path, monkeypatch)
    return path


def declare(path: Path, monkeypatch) -> None:
    """Makes the checksums of an archive those of the published one."""
    for name, algorithm in (("MD5", hashlib.md5), ("SHA256", hashlib.sha256)):
        monkeypatch.setattr(tiny_imagenet, name, algorithm(path.read_bytes()).hexdigest())


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves the folder `published` instead of the real address."""
    (tmp_path / "published").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path / "published")) as server:
        monkeypatch.setattr(tiny_imagenet, "URL", f"http://127.0.0.1:{server.server_port}/tiny-imagenet-200.zip")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "published"
        server.shutdown()


def test_download_fetches_checks_and_unpacks(folder, server, tmp_path, monkeypatch):
    published, root = publish(folder, server, monkeypatch), tmp_path / "new" / "root"
    assert "does not exist" in error(root)
    assert not root.exists()  # nothing is fetched without download=True
    downloaded = load_dataset("tiny-imagenet", root, download=True)
    assert torch.equal(downloaded.train_images, load_dataset("tiny-imagenet", folder).train_images)
    assert sorted(path.name for path in root.iterdir()) == ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    published.unlink()
    load_dataset("tiny-imagenet", root, download=True)  # an existing set is not fetched again


def test_an_existing_archive_is_unpacked_without_the_network(folder, tmp_path, monkeypatch):
    archive = publish(folder, tmp_path / "root", monkeypatch)
    monkeypatch.setattr(tiny_imagenet, "URL", "none")
    assert len(load_dataset("tiny-imagenet", archive.parent, download=True).train_labels) == 6


def test_members_of_an_archive_stay_below_the_folder(folder, tmp_path, monkeypatch):
    """Holds even if the checksum is right, as if the archive had been published in this form."""
    root = tmp_path / "root"
    root.mkdir()
    archive = publish(folder, root, monkeypatch)
    link = zipfile.ZipInfo("tiny-imagenet-200/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        for name in ("../evil", "tiny-imagenet-200/../../../evil", f"{tmp_path}/evil", "tiny-imagenet-200/link/evil"):
            file.writestr(name, "")
        file.writestr(link, str(tmp_path))
    declare(archive, monkeypatch)
    error_of("tiny-imagenet", root, download=True)  # because the link blocks this file
    assert not [path for path in tmp_path.rglob("evil") if root not in path.parents]
    assert not any(path.is_symlink() for path in root.rglob("*"))


def test_an_archive_with_a_wrong_checksum_is_not_unpacked(folder, server, tmp_path, monkeypatch):
    published = publish(folder, server, monkeypatch)
    with zipfile.ZipFile(published, "a") as file:
        file.writestr("more", "")
    assert "could not be downloaded (File not found or corrupted.): " in error(tmp_path / "root", download=True)
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["tiny-imagenet-200.zip"]


def test_an_archive_with_the_right_md5_and_another_sha256_is_not_unpacked(folder, server, tmp_path, monkeypatch):
    publish(folder, server, monkeypatch)
    monkeypatch.setattr(tiny_imagenet, "SHA256", 64 * "0")
    archive = tmp_path / "root" / "tiny-imagenet-200.zip"
    message = error(archive.parent, download=True)
    assert message.startswith(f"{archive} is not the published file (its sha256 is ")
    assert list(archive.parent.iterdir()) == [archive]


def test_the_archive_is_fetched_over_https():
    assert tiny_imagenet.URL.startswith("https://")


@pytest.mark.parametrize("content", [b"<html>Moved</html>", b"PK\3\4 and no more"])
def test_a_download_that_is_not_the_archive_is_refused(server, tmp_path, content):
    (server / "tiny-imagenet-200.zip").write_bytes(content)
    archive = tmp_path / "root" / "tiny-imagenet-200.zip"
    message = error(archive.parent, download=True)
    assert message.startswith(f"{archive} is a web page") == content.startswith(b"<html>")
    assert "could not be downloaded (File not found or corrupted.): " in message
    assert "set data.download=true again" in message
    assert list(archive.parent.iterdir()) == [archive]


def test_a_server_without_the_archive_is_named(server, tmp_path):
    message = error(tmp_path / "root", download=True)
    assert message.startswith(f"{tiny_imagenet.URL} could not be downloaded (HTTP Error 404: File not found): fetch it")
