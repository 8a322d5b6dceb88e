"""Every reader of untrusted files: small valid files for each, and a function that reads all of them."""

import gzip
import io
import json
import zipfile
from collections import defaultdict
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from mutations import Field
from PIL import Image
from rich.console import Console
from safetensors.torch import load, save, save_file
from target import Part, Target

from fastadaad import recipes
from fastadaad.cli.comparison.experiment import Training
from fastadaad.cli.config_file import ConfigFileError, overrides_of, read_settings
from fastadaad.config_io import read_config
from fastadaad.data import DataError, Dataset, load_dataset
from fastadaad.data.corruptions import read_corruptions
from fastadaad.data.datasets.extra_images import ExtraImages
from fastadaad.data.datasets.packed import SPLITS, SUMMARY, labels_path, load_packed, read_pack, verify_pack
from fastadaad.data.datasets.source import Source
from fastadaad.data.image_decoding import decode_resized
from fastadaad.data.packing import pack
from fastadaad.evaluation import AttackResult
from fastadaad.evaluation.survival import Survival
from fastadaad.models import WeightsError, load_model, read_state_dict
from fastadaad.models.recognition import recognize
from fastadaad.models.weights_writing import ENTRY, serialized
from fastadaad.runtime.json_files import JsonError, read_json
from fastadaad.runtime.machine_cache import Entry
from fastadaad.training.checkpoint import CheckpointError, CheckpointFacts, read_checkpoint, write_checkpoint
from fastadaad.training.log import METRICS, read_metrics
from fastadaad.training.self_check_result import SelfCheckResult

SETTINGS = """
seed: 3
data: {batch_size: 32, root: null}
inner: {step_size: 2/255, threat_model: &ball {norm: linf, epsilon: 8/255}}
optim:
  milestones: [0.5, 0.75]
evaluation: {threat_model: *ball}
"""
RNG = np.random.default_rng(0)
SHAPE = (8, 6, 3)


def _read_settings(folder: Path) -> None:
    path = folder / "mine.yaml"
    overrides_of(path, read_settings(path))


def member(file: str, name: str) -> Part:
    """Damages a member of an archive, then corrects its checksum and sizes."""

    def unpack(whole: bytes) -> bytes:
        return zipfile.ZipFile(io.BytesIO(whole)).read(name)

    def pack(whole: bytes, inner: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(stream, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, inner if entry.filename == name else old.read(entry), entry.compress_type)
        return stream.getvalue()

    return Part(file=file, unpack=unpack, pack=pack)


def state_of_a_run(file: str) -> Part:
    """Damages the JSON of a run's checkpoint, then corrects the checksum if it is still JSON."""

    def unpack(whole: bytes) -> bytes:
        length = int.from_bytes(whole[:8], "little")
        entry = json.loads(whole[8 : 8 + length])["__metadata__"][ENTRY]
        return json.dumps(json.loads(entry)["content"]).encode()

    def pack(whole: bytes, inner: bytes) -> bytes:
        tensors = load(whole)
        try:
            content = json.loads(inner)
        except ValueError:
            return save(tensors, {ENTRY: f'{{"content": {inner.decode(errors="replace")}, "sha256": ""}}'})
        return serialized(tensors, content=content, sha256=sha256(serialized(tensors, content=content)).hexdigest())

    return Part(file=file, unpack=unpack, pack=pack)


def _weights() -> dict[str, torch.Tensor]:
    return load_model("cnn-2").state_dict()


def _checkpoint_content() -> dict:
    """Returns weights in MAIR's layout, with a view of a storage and harmless values beside them."""
    return {
        "rmodel": _weights(),
        "mean": np.full(3, 0.5),
        "std": np.full(3, 0.25),
        "epoch": 3,
        "accuracy": np.float64(0.5),
        "view": torch.arange(10.0)[3:6],
        "path": Path("/runs"),
        "history": defaultdict(list, loss=[0.5]),
    }


def _write_safetensors(folder: Path) -> None:
    save_file(_weights(), folder / "w.safetensors", {"fastadaad": json.dumps({"model": "cnn-2"})})


def _read_weights(path: Path) -> None:
    """Reads weights as `fastadaad inspect` does, and every number."""
    weights = read_state_dict(path)
    for tensor in weights.values():
        tensor.double().sum().item()
    recognize(weights)


def idx(array: np.ndarray) -> bytes:
    """Returns the content of an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


IDX_FIELDS = tuple(Field(offset, 4, "big") for offset in (0, 4, 8, 12))
IDX_FILES = {
    "train-images-idx3-ubyte": idx(RNG.integers(0, 256, (5, 28, 28), dtype=np.uint8)),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx(RNG.integers(0, 10, 5, dtype=np.uint8)), mtime=0),
    "t10k-images-idx3-ubyte.gz": gzip.compress(idx(RNG.integers(0, 256, (3, 28, 28), dtype=np.uint8)), mtime=0),
    "t10k-labels-idx1-ubyte": idx(RNG.integers(0, 10, 3, dtype=np.uint8)),
}


def _write_idx(folder: Path) -> None:
    for name, content in IDX_FILES.items():
        (folder / name).write_bytes(content)


def _write_npz(folder: Path) -> None:
    arrays = {"image": RNG.integers(0, 256, (9, *SHAPE), dtype=np.uint8), "label": RNG.integers(0, 10, 9)}
    np.savez(folder / "extra.npz", **arrays)


def _read_npz(folder: Path) -> None:
    extra = ExtraImages(folder / "extra.npz", num_classes=10, image_shape=SHAPE)
    images = torch.empty(len(extra), *SHAPE, dtype=torch.uint8)
    extra.read_into(images)


CORRUPTED = Dataset(
    name="cifar10",
    train_images=torch.zeros(1, *SHAPE, dtype=torch.uint8),
    train_labels=torch.zeros(1, dtype=torch.int64),
    test_images=torch.zeros(2, *SHAPE, dtype=torch.uint8),
    test_labels=torch.arange(2),
    class_names=("a", "b"),
)


def _write_corruptions(folder: Path) -> None:
    np.save(folder / "fog.npy", RNG.integers(0, 256, (10, *SHAPE), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.arange(2), 5))


def _read_corruptions(folder: Path) -> None:
    for images in read_corruptions(folder, CORRUPTED).images("fog"):
        images.sum().item()


IMAGES = ("cat/a.png", "cat/b.jpg", "cat/c.gif", "cat/d.webp", "dog/a.bmp", "dog/b.ppm", "dog/c.tif")


def _write_images(folder: Path) -> None:
    for split, names in (("train", IMAGES), ("test", ("cat/a.png", "dog/a.png"))):
        for name in names:
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 256, (11, 13, 3), dtype=np.uint8)).save(path)


def _read_images(folder: Path) -> None:
    """Reads images as the torch engine does."""
    images = load_dataset("folder", folder, image_size=8).train_images
    for index in range(len(images)):
        decode_resized(images, index)  # type: ignore[arg-type]


def _write_pack(folder: Path) -> None:
    _write_images(folder / "images")
    dataset = load_dataset("folder", folder / "images", image_size=8)
    pack(dataset, folder / "pack", num_workers=1, console=Console(quiet=True))


def _read_pack(folder: Path) -> None:
    dataset = load_packed(Source(root=folder / "pack"))
    for images in (dataset.train_images, dataset.test_images):
        images.sum().item()  # type: ignore[union-attr]
    verify_pack(folder / "pack", read_pack(folder / "pack"), lambda num_images: None)


def _read_pack_with_a_matching_checksum(folder: Path) -> None:
    """Reads a pack after writing the checksum of the damaged labels, as an attacker would."""
    summary = json.loads((folder / "pack" / SUMMARY).read_text())
    for split in SPLITS:
        content = labels_path(folder / "pack", split).read_bytes()
        summary["splits"][split]["labels_sha256"] = sha256(content).hexdigest()
    (folder / "pack" / SUMMARY).write_text(json.dumps(summary))
    _read_pack(folder)


def _write_run(folder: Path) -> None:
    facts = CheckpointFacts(run={"seed": 0}, versions={"torch": "2"}, processes=1, epoch=1, epochs=2, finished=False)
    state = {"student": _weights(), "step": 3, "random": [torch.get_rng_state()[:64], None]}
    write_checkpoint(folder, 3, facts, state)


def small_json(kind: type, content: dict) -> Target:
    """Returns the reader of a small JSON file of this package, which holds a dataclass."""
    return Target(
        write=lambda folder: (folder / "file.json").write_text(json.dumps(content)) and None,
        read=lambda folder: read_json(folder / "file.json", kind, "delete it") and None,
        parts=(Part(file="file.json"),),
        error=JsonError,
    )


def _write_metrics(folder: Path) -> None:
    values = [[str(round(value, 4)) for value in RNG.random(len(METRICS))] for _ in range(5)]
    (folder / "metrics.csv").write_text("\n".join(",".join(row) for row in [METRICS, *values]) + "\n")


RESULT = AttackResult(
    attack="pgd20", restarts=1, norm="linf", epsilon=0.03, num_images=1000, accuracy=0.5, seconds=1.5,
    parts=(("apgd-ce", 0.5, 1.0), ("square", 0.5, 0.5)), notes=("a note",),
)  # fmt: skip
SURVIVAL = Survival(survives=[True, False] * 20, attacked=[True] * 40, accuracies=[0.5], seconds=[1.5, 0.5])

RUN_FILE = "checkpoints/step-000000003.safetensors"
SAFETENSORS_FIELDS = (Field(0, 8), Field(8, 1))

TARGETS = {
    "safetensors": Target(
        write=_write_safetensors,
        read=lambda folder: _read_weights(folder / "w.safetensors"),
        parts=(Part(file="w.safetensors", fields=SAFETENSORS_FIELDS),),
        error=WeightsError,
    ),
    "torch-save": Target(
        write=lambda folder: torch.save(_checkpoint_content(), folder / "w.pt"),
        read=lambda folder: _read_weights(folder / "w.pt"),
        parts=(Part(file="w.pt"), member("w.pt", "w/data.pkl")),
        error=WeightsError,
    ),
    "torch-save-old": Target(
        write=lambda folder: torch.save(_checkpoint_content(), folder / "w.pt", _use_new_zipfile_serialization=False),
        read=lambda folder: _read_weights(folder / "w.pt"),
        parts=(Part(file="w.pt"),),
        error=WeightsError,
    ),
    "run-checkpoint": Target(
        write=_write_run,
        read=lambda folder: read_checkpoint(folder / RUN_FILE) and None,
        parts=(Part(file=RUN_FILE, fields=SAFETENSORS_FIELDS), state_of_a_run(RUN_FILE)),
        error=CheckpointError,
    ),
    "idx": Target(
        write=_write_idx,
        read=lambda folder: load_dataset("fashion-mnist", folder) and None,
        parts=(
            Part(file="train-images-idx3-ubyte", fields=IDX_FIELDS),
            Part(file="t10k-labels-idx1-ubyte", fields=IDX_FIELDS[:2]),
            Part(file="train-labels-idx1-ubyte.gz"),
            Part(
                file="t10k-images-idx3-ubyte.gz",
                unpack=gzip.decompress,
                pack=lambda whole, inner: gzip.compress(inner, mtime=0),
                fields=IDX_FIELDS,
            ),
        ),
        error=DataError,
    ),
    "npz": Target(
        write=_write_npz,
        read=_read_npz,
        parts=(Part(file="extra.npz"), member("extra.npz", "image.npy"), member("extra.npz", "label.npy")),
        error=DataError,
    ),
    "corruptions": Target(
        write=_write_corruptions,
        read=_read_corruptions,
        parts=(Part(file="fog.npy"), Part(file="labels.npy")),
        error=DataError,
    ),
    "images": Target(
        write=_write_images,
        read=_read_images,
        parts=tuple(Part(file=f"train/{name}") for name in IMAGES),
        error=DataError,
    ),
    "pack": Target(
        write=_write_pack,
        read=_read_pack,
        parts=tuple(Part(file=f"pack/{name}") for name in (SUMMARY, "train_labels.npy", "train_images.u8")),
        error=DataError,
    ),
    "labels-of-a-pack": Target(
        write=_write_pack,
        read=_read_pack_with_a_matching_checksum,
        parts=(Part(file="pack/train_labels.npy"),),
        error=DataError,
    ),
    "training-of-a-comparison": small_json(Training, {"best_epoch": 3, "images_per_s": 250.5, "seconds": 12.5}),
    "result-of-a-comparison": small_json(AttackResult, asdict(RESULT)),
    "state-of-an-attack": small_json(Survival, asdict(SURVIVAL)),
    "machine-cache": small_json(Entry, {"key": "a key", "value": {"choice": "contiguous"}, "date": "2026-01-01"}),
    "self-check-of-a-machine": small_json(
        SelfCheckResult,
        asdict(SelfCheckResult(passed=("kl_grad",), failures={"a": "b"}, not_run={}, device="cpu", seconds=0.5)),
    ),
    "metrics": Target(
        write=_write_metrics,
        read=lambda folder: read_metrics(folder) and None,
        parts=(Part(file="metrics.csv"),),
        error=ValueError,
    ),
    "settings": Target(
        write=lambda folder: (folder / "mine.yaml").write_text(SETTINGS) and None,
        read=_read_settings,
        parts=(Part(file="mine.yaml"),),
        error=ConfigFileError,
    ),
    "config": Target(
        write=lambda folder: (folder / "config.json").write_text(json.dumps(asdict(recipes.get("demo")))) and None,
        read=lambda folder: read_config(folder / "config.json") and None,
        parts=(Part(file="config.json"),),
        error=ValueError,
    ),
}
