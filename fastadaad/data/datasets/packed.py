"""The data set `packed`: what `fastadaad pack` wrote, through a memory map, so that it may be larger than the memory.

A pack is a folder: train_images.u8 and test_images.u8, raw uint8 [M, S, S, 3]; train_labels.npy and test_labels.npy,
int64 [M]; and pack.json, which is written last and says what the others have to be.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, Dataset, check_labels
from fastadaad.data.datasets.npy_header import read_npy_header
from fastadaad.data.datasets.source import Source
from fastadaad.data.mapped_images import map_images
from fastadaad.runtime.file_checks import one_line
from fastadaad.runtime.file_limits import NPY_HEADER_BYTES, SUMMARY_BYTES, check_size

FORMAT = 1
SPLITS = ("train", "test")
SUMMARY = "pack.json"
LOG = "packing.jsonl"
"""Only there while a pack is not finished."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _is_list(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a pack is made of and how."""

    image_size: int
    center_share: float
    files_sha256: str
    """Of the names and labels of all files and the names of the classes."""
    format: int = FORMAT

    def __post_init__(self) -> None:
        _require(type(self.image_size) is int and self.image_size >= 1, f"image_size is {self.image_size!r}")
        _require(type(self.format) is int, f"format is {self.format!r}")

    @property
    def image_bytes(self) -> int:
        return 3 * self.image_size**2

    def check_same(self, found: Mapping[str, object], folder: Path) -> None:
        """Raises DataError where the origin `found` in `folder`, as asdict gives it, is another one."""
        for name, value in asdict(self).items():
            if found.get(name) != value:
                what = "other files" if name == "files_sha256" else f"{name} {found.get(name)}, not {value}"
                raise DataError(f"{folder} was begun with {what}: give another OUT, or delete {folder}")


@dataclass(frozen=True, kw_only=True)
class PackedSplit:
    """What pack.json says about one split."""

    num_images: int
    labels_sha256: str
    """Of the bytes of the file."""
    chunk_images: list[int]
    """How many images each part of their file has."""
    chunk_sha256: list[str]
    skipped: dict[str, str]
    """Files that could not be decoded and why."""

    def __post_init__(self) -> None:
        _require(_is_list(self.chunk_images, int) and min(self.chunk_images, default=0) >= 0, "chunk_images is wrong")
        _require(type(self.num_images) is int and self.num_images == sum(self.chunk_images) > 0, "num_images is wrong")
        _require(_is_list(self.chunk_sha256, str), "chunk_sha256 is no list of str")
        _require(len(self.chunk_sha256) == len(self.chunk_images), "chunk_sha256 has another length")
        _require(isinstance(self.skipped, dict) and _is_list([*self.skipped.values()], str), "skipped is no table")


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What pack.json says."""

    origin: Origin
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, PackedSplit]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Pack":
        """Raises KeyError, TypeError or ValueError for anything but what to_json wrote."""
        facts = json.loads(content)
        lists = {"class_names": str, "mean": float, "std": float}
        for name, kind in lists.items():
            _require(_is_list(facts[name], kind), f"{name} is no list of {kind.__name__}")
        _require(len(facts["mean"]) == len(facts["std"]) == 3, "mean and std are not those of three channels")
        _require(all(map(math.isfinite, facts["mean"] + facts["std"])), "mean or std is not finite")
        return cls(
            origin=Origin(**facts["origin"]),
            splits={split: PackedSplit(**facts["splits"][split]) for split in SPLITS},
            **{name: tuple(facts[name]) for name in lists},
        )


def images_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_images.u8"


def labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"


def load_packed(source: Source) -> Dataset:
    """The data set in the pack `source.root`; images are read when a batch needs them. Raises DataError."""
    root = source.root
    pack = read_pack(root)
    images = {split: _mapped_images(root, pack, split) for split in SPLITS}
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
    """What pack.json in `root` says. Raises DataError where it is missing or damaged."""
    path = root / SUMMARY
    if not path.is_file():
        if (root / LOG).is_file():
            raise DataError(
                f"{root} is not finished: run the same fastadaad pack command again, and it goes on where it stopped"
            )
        raise DataError(f"{path} does not exist: set data.root=FOLDER to a folder that fastadaad pack wrote")
    try:
        check_size(path, SUMMARY_BYTES)
        pack = Pack.from_json(path.read_bytes())
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}): {_remedy(root)}") from error
    if pack.origin.format != FORMAT:
        raise DataError(f"{path} has format {pack.origin.format}, and this version reads {FORMAT}: {_remedy(root)}")
    return pack


def verify_pack(root: Path, pack: Pack, advance: Callable[[int], object]) -> None:
    """Read all of `root` and compare it with the checksums of `pack`; `advance` hears of every chunk's images.

    Raises DataError that names the first damaged file and place.
    """
    for split in SPLITS:
        _check_size(root, pack, split)
        _labels(root, pack, split)
        path, packed, first = images_path(root, split), pack.splits[split], 0
        with path.open("rb") as file:
            for num_images, sha256 in zip(packed.chunk_images, packed.chunk_sha256, strict=True):
                if hashlib.sha256(file.read(num_images * pack.origin.image_bytes)).hexdigest() != sha256:
                    place = f"in images {first} to {first + num_images - 1}"
                    raise DataError(f"{path} is damaged {place}: {_remedy(root)}")
                first += num_images
                advance(num_images)


def _mapped_images(root: Path, pack: Pack, split: str) -> Tensor:
    """uint8 [M, S, S, 3]; what is written to it stays in this process."""
    _check_size(root, pack, split)
    size = pack.origin.image_size
    return map_images(images_path(root, split), (size, size, 3))


def _check_size(root: Path, pack: Pack, split: str) -> None:
    path, promised = images_path(root, split), pack.splits[split].num_images * pack.origin.image_bytes
    if not path.is_file():
        raise DataError(f"{path} does not exist: {_remedy(root)}")
    found = path.stat().st_size
    if found != promised:
        raise DataError(f"{path} has {found} bytes where {SUMMARY} promises {promised}: {_remedy(root)}")


def _labels(root: Path, pack: Pack, split: str) -> Tensor:
    """int64 [M]."""
    path, packed = labels_path(root, split), pack.splits[split]
    if not path.is_file():
        raise DataError(f"{path} does not exist: {_remedy(root)}")
    try:
        check_size(path, 8 * packed.num_images + NPY_HEADER_BYTES)
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != packed.labels_sha256:
            raise ValueError("its checksum is another one")
        stream = io.BytesIO(content)
        header = read_npy_header(stream, len(content))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({one_line(error)}): {_remedy(root)}") from error
    if header.dtype != np.int64 or header.shape != (packed.num_images,):
        found = f"{header.dtype} {list(header.shape)}"
        raise DataError(f"{path} holds {found}, not int64 labels of {packed.num_images} images: {_remedy(root)}")
    labels = torch.from_numpy(np.frombuffer(stream.read(), np.int64).copy())
    check_labels(path, labels, len(pack.class_names), _remedy(root))
    return labels


def _remedy(root: Path) -> str:
    return f"delete {root} and run fastadaad pack again"
