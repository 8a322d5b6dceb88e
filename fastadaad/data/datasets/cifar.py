"""CIFAR-10 and CIFAR-100 from the files that torchvision downloads."""

from dataclasses import replace
from typing import Any

import torch

from fastadaad.data.dataset import DataError, Dataset
from fastadaad.data.datasets.source import Source
from fastadaad.runtime.untrusted_files import is_web_page, one_line


def load_cifar(name: str, source: Source) -> Dataset:
    """Reads cifar10 or cifar100. Raises DataError.

    torchvision checks the MD5 of the archive and of every file, so the contents are the published ones.
    """
    from torchvision import datasets

    torchvision_class = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    if source.root.name == torchvision_class.base_folder:  # the unpacked folder itself
        source = replace(source, root=source.root.parent)
    try:
        train, test = (torchvision_class(source.root, train=train, download=source.download) for train in (True, False))
    except (OSError, RuntimeError) as error:
        reason = f" (the download failed: {one_line(error)})" if source.download else ""
        raise DataError(
            f"{_bad_file(torchvision_class, source)}{reason}: set data.download=true, also to unpack "
            f"{torchvision_class.filename} that you put into {source.root} yourself, or set data.root=FOLDER to the "
            "folder that holds torchvision's files"
        ) from error
    return Dataset(
        name=name,
        train_images=torch.from_numpy(train.data),
        train_labels=torch.tensor(train.targets),
        test_images=torch.from_numpy(test.data),
        test_labels=torch.tensor(test.targets),
        class_names=tuple(train.classes),
    )


def _bad_file(torchvision_class: Any, source: Source) -> str:
    """Describes the first file that torchvision rejects."""
    from torchvision.datasets.utils import check_integrity

    archive = source.root / torchvision_class.filename
    if is_web_page(archive):
        return f"{archive} is a web page, not an archive"
    folder, meta = source.root / torchvision_class.base_folder, torchvision_class.meta
    files = [*torchvision_class.train_list, *torchvision_class.test_list, (meta["filename"], meta["md5"])]
    for file_name, md5 in files:
        path = folder / file_name
        if not path.is_file():
            return f"{path} does not exist"
        if is_web_page(path):
            return f"{path} is a web page, not a file of CIFAR"
        if not check_integrity(str(path), md5):
            return f"{path} is truncated or corrupt"
    return f"{folder} cannot be read"
