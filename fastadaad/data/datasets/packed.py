"""The data set `packed`: reads a pack, written by `fastadaad pack`, through a memory map; it may be larger than memory.

A pack is a folder: train_images.u8 and test_images.u8, raw uint8 [M, S, S, 3]; train_labels.npy and test_labels.npy,
int64 [M]; and pack.json, which is written last and holds the sizes and checksums of the other files.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, check_labels
from fastadaad.data.datasets.npy_header import read_npy_header
from fastadaad.data.datasets.source import Source
from fastadaad.data.mapped_images import map_images
from fastadaad.runtime.json_files import json_value
from fastadaad.runtime.untrusted_files import NPY_HEADER_BYTES, SUMMARY_BYTES, check_size, one_line

Result = TypeVar("Result")

FORMAT = 1
SPLITS = ("train", "test")
SUMMARY = "pack.json"
JOURNAL = "packing.json"
"""Exists while a pack is unfinished, see packing.py."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Source of a pack; files_sha256 covers the names and labels of all files and the names of the classes."""

    image_size: int
    center_share: float
    files_sha256: str
    format: int = FORMAT

    def __post_init__(self) -> None:
        _require(type(self.image_size) is int and self.image_size >= 1, f"image_size is {self.image_size!r}")
        _require(type(self.format) is int, f"format is {self.format!r}")

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return 3 * self.image_size**2

    def check_same(self, found: "Origin", folder: Path) -> None:
        """Raises DataError if `found`, the origin of the pack in `folder`, differs."""
        for name, value in asdict(self).items():
            other = getattr(found, name)
            if other != value:
                what = "other files" if name == "files_sha256" else f"{name} {other}, not {value}"
                raise DataError(f"{folder} was begun with {what}: give another OUT, or delete {folder}")


@dataclass(frozen=True, kw_only=True)
class PackedSplit:
    """Contents of one split of a pack.

    Attributes:
        num_images: Number of packed images.
        labels_sha256: Checksum of the file of labels; empty while the pack is unfinished.
        chunk_images: Number of images of each chunk of the image file.
        chunk_sha256: Checksum of each chunk.
        skipped: Files that could not be decoded, with the reason.
    """

    num_images: int = 0
    labels_sha256: str = ""
    chunk_images: list[int] = field(default_factory=list)
    chunk_sha256: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require(_is_list(self.chunk_images, int) and min(self.chunk_images, default=0) >= 0, "chunk_images is wrong")
        _require(type(self.num_images) is int and self.num_images == sum(self.chunk_images), "num_images is wrong")
        _require(_is_list(self.chunk_sha256, str), "chunk_sha256 is no list of str")
        _require(len(self.chunk_sha256) == len(self.chunk_images), "chunk_sha256 has another length")
        _require(isinstance(self.skipped, dict) and _is_list([*self.skipped.values()], str), "skipped is no table")

    @property
    def num_files(self) -> int:
        """Number of files, skipped ones included."""
        return self.num_images + len(self.skipped)


def splits_of(facts: dict[str, Any]) -> dict[str, PackedSplit]:
    """Parses the entry `splits` of pack.json or packing.json. Raises KeyError, TypeError or ValueError."""
    return {split: PackedSplit(**facts["splits"][split]) for split in SPLITS}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Contents of pack.json; mean and std are those of the training images, per channel in pixel units."""

    origin: Origin
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, PackedSplit]

    def to_json(self) -> bytes:
        """Returns the content of pack.json."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def parse(cls, facts: Any) -> "Pack":
        """Parses the JSON of to_json. Raises KeyError, TypeError or ValueError for anything else."""
        lists = {"class_names": str, "mean": float, "std": float}
        for name, kind in lists.items():
            _require(_is_list(facts[name], kind), f"{name} is no list of {kind.__name__}")
        _require(len(facts["mean"]) == len(facts["std"]) == 3, "mean and std are not those of three channels")
        _require(all(map(math.isfinite, facts["mean"] + facts["std"])), "mean or std is not finite")
        splits = splits_of(facts)
        _require(all(packed.num_images > 0 for packed in splits.values()), "a split has no images")
        return cls(origin=Origin(**facts["origin"]), splits=splits, **{name: tuple(facts[name]) for name in lists})


def images_path(folder: Path, split: str) -> Path:
    """Path of the pixels of a split."""
    return folder / f"{split}_images.u8"


def labels_path(folder: Path, split: str) -> Path:
    """Path of the labels of a split."""
    return folder / f"{split}_labels.npy"


def load_packed(source: Source) -> Dataset:
    """Reads the pack `source.root`; images are read when a batch needs them. Raises DataError."""
    root = source.root
    pack = read_pack(root)
    image_shape = (pack.origin.image_size, pack.origin.image_size, 3)
    images = {split: map_images(_checked_images(root, pack, split), image_shape) for split in SPLITS}
    labels = {split: _labels(root, pack, split) for split in SPLITS}
    return Dataset(
        name="packed",
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        class_names=pack.class_names,
        statistics=(pack.mean, pack.std),
        skipped={Path(split, name): why for split in SPLITS for name, why in pack.splits[split].skipped.items()},
    )


def read_pack(root: Path) -> Pack:
    """Reads pack.json in `root`. Raises DataError if it is missing or damaged."""
    path = root / SUMMARY
    if not path.is_file():
        if (root / JOURNAL).is_file():
            raise DataError(f"{root} is unfinished: run the same fastadaad pack command again to resume")
        raise DataError(f"{path} does not exist: set data.root=FOLDER to a folder that fastadaad pack wrote")
    pack = parsed(path, Pack.parse)
    if pack.origin.format != FORMAT:
        raise DataError(f"{path} has format {pack.origin.format}, and this version reads {FORMAT}: {remedy(root)}")
    return pack


def parsed(path: Path, parse: Callable[[Any], Result]) -> Result:
    """Returns parse(contents of a JSON file). Raises DataError if the file is damaged."""
    try:
        return parse(json_value(path, SUMMARY_BYTES))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: of torch
        raise DataError(f"{path} cannot be read ({one_line(error)}): {remedy(path.parent)}") from error


def verify_pack(root: Path, pack: Pack, advance: Callable[[int], object]) -> None:
    """Compares all files of `root` with the checksums of `pack`.

    Args:
        root: Folder of the pack.
        pack: Contents of its pack.json.
        advance: Called with the number of images of each chunk that was read.

    Raises:
        DataError: For the first damaged file; the message names the images.
    """
    for split in SPLITS:
        _labels(root, pack, split)
        path, packed, first = _checked_images(root, pack, split), pack.splits[split], 0
        with path.open("rb") as file:
            for num_images, sha256 in zip(packed.chunk_images, packed.chunk_sha256, strict=True):
                if hashlib.sha256(file.read(num_images * pack.origin.image_bytes)).hexdigest() != sha256:
                    place = f"in images {first} to {first + num_images - 1}"
                    raise DataError(f"{path} is damaged {place}: {remedy(root)}")
                first += num_images
                advance(num_images)


def _checked_images(root: Path, pack: Pack, split: str) -> Path:
    """Returns the path of the image file after a check of its size."""
    path, promised = images_path(root, split), pack.splits[split].num_images * pack.origin.image_bytes
    if not path.is_file():
        raise DataError(f"{path} does not exist: {remedy(root)}")
    found = path.stat().st_size
    if found != promised:
        raise DataError(f"{path} has {found} bytes, not {promised} as in {SUMMARY}: {remedy(root)}")
    return path


def _labels(root: Path, pack: Pack, split: str) -> Tensor:
    """Reads the labels, int64 [M]."""
    path, packed = labels_path(root, split), pack.splits[split]
    if not path.is_file():
        raise DataError(f"{path} does not exist: {remedy(root)}")
    try:
        check_size(path, 8 * packed.num_images + NPY_HEADER_BYTES)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != packed.labels_sha256:
            raise ValueError("its checksum differs")
        stream = io.BytesIO(content)
        header = read_npy_header(stream, len(content))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}): {remedy(root)}") from error
    if header.dtype != np.int64 or header.shape != (packed.num_images,):
        found = f"{header.dtype} {list(header.shape)}"
        raise DataError(f"{path} holds {found}, not int64 labels of {packed.num_images} images: {remedy(root)}")
    labels = torch.from_numpy(np.frombuffer(stream.read(), np.int64).copy())
    check_labels(path, labels, len(pack.class_names), remedy(root))
    return labels


def remedy(root: Path) -> str:
    """Returns the remedy for a damaged pack."""
    return f"delete {root} and run fastadaad pack again"
