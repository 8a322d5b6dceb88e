"""Images that the engines are compared on: arrays of CIFAR's shape, and JPEG files."""

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from fastadaad.config import Engine
from fastadaad.data import Augmentation, Sampling, load_dataset, make_pipeline
from fastadaad.data.dataset import Images
from fastadaad.data.packing import pack

from . import data_loaders
from .data_speed import Contest, Entrant
from .image_tree import NUM_CLASSES

DATALOADER = "DataLoader"  # a plain one as in tutorials; the engine torch uses a DataLoader too
REFERENCES = ("torch", DATALOADER)

ARRAY_SIZE, ARRAY_BATCH = 32, 128
ARRAY_AUGMENTATION = Augmentation(padding=4, flip=True)
FILE_BATCH = 64
FILE_AUGMENTATION = Augmentation(min_crop_scale=0.08, flip=True)
PACKED_AUGMENTATION = Augmentation(padding=28, flip=True)


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Settings shared by the entrants of a contest."""

    batch_size: int
    num_workers: int
    device: torch.device

    def engine(self, engine: Engine, images: Images, labels: Tensor, augmentation: Augmentation) -> Entrant:
        pipeline = make_pipeline(
            engine,
            images,
            labels,
            sampling=Sampling(batch_size=self.batch_size, drop_last=True),
            augmentation=augmentation,
            num_workers=self.num_workers,
            device=self.device,
        )
        num_workers = 0 if engine == "resident" else self.num_workers
        return Entrant(epoch=pipeline.epoch, work=_described(augmentation), num_workers=num_workers)

    def dataloader(self, dataset: Dataset, augmentation: Augmentation) -> Entrant:
        def epoch(_: int):
            return data_loaders.epoch(dataset, self.batch_size, self.num_workers, self.device)

        return Entrant(epoch=epoch, work=_described(augmentation), num_workers=self.num_workers)

    def contest(self, images: str, num_images: int, entrants: dict[str, Entrant]) -> Contest:
        return Contest(
            images=images,
            batch_size=self.batch_size,
            num_batches=num_images // self.batch_size,
            num_workers=self.num_workers,
            entrants=entrants,
            references=REFERENCES,
            device=self.device,
        )


def arrays(num_images: int, num_workers: int, device: torch.device) -> Contest:
    """Contest on random pixels; the speed of the engines does not depend on the pixel values."""
    setting = _Setting(batch_size=ARRAY_BATCH, num_workers=num_workers, device=device)
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, ARRAY_SIZE, ARRAY_SIZE, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.randint(NUM_CLASSES, (num_images,), generator=generator)
    dataset = data_loaders.array_dataset(images, labels, ARRAY_AUGMENTATION.padding)
    entrants = {
        "resident": setting.engine("resident", images, labels, ARRAY_AUGMENTATION),
        "dali": setting.engine("dali", images, labels, ARRAY_AUGMENTATION),
        "torch": setting.engine("torch", images, labels, ARRAY_AUGMENTATION),
        DATALOADER: setting.dataloader(dataset, ARRAY_AUGMENTATION),
    }
    return setting.contest(f"{num_images} arrays of {ARRAY_SIZE}x{ARRAY_SIZE}x3", num_images, entrants)


def files(tree: Path, image_size: int, num_workers: int, device: torch.device) -> Contest:
    """Contest on the training images of a tree that image_tree() wrote.

    The packed entrant pads and crops, since resized crops need files.

    Args:
        tree: The tree; a pack of its images is written beside it.
        image_size: Height and width of the images in a batch, in pixels.
        num_workers: Processes or threads of each entrant.
        device: Device that the batches end up on.
    """
    setting = _Setting(batch_size=FILE_BATCH, num_workers=num_workers, device=device)
    source = load_dataset("folder", tree, image_size=image_size)
    images, labels = source.train_images, source.train_labels
    packed = tree.with_name(f"{tree.name}-packed-{image_size}")
    pack(source, packed, num_workers=num_workers, console=Console())
    packed_images = load_dataset("packed", packed).train_images
    dataset = data_loaders.file_dataset(tree / "train", image_size, FILE_AUGMENTATION.min_crop_scale)
    entrants = {
        "resident, packed": setting.engine("resident", packed_images, labels, PACKED_AUGMENTATION),
        "dali": setting.engine("dali", images, labels, FILE_AUGMENTATION),
        "torch": setting.engine("torch", images, labels, FILE_AUGMENTATION),
        DATALOADER: setting.dataloader(dataset, FILE_AUGMENTATION),
    }
    return setting.contest(f"{len(labels)} JPEG files to {image_size}x{image_size}x3", len(labels), entrants)


def _described(augmentation: Augmentation) -> str:
    parts = []
    if augmentation.min_crop_scale < 1:
        parts.append(f"crop of {augmentation.min_crop_scale} to 1 of the area, resized")
    if augmentation.padding:
        parts.append(f"crop out of a border of {augmentation.padding}")
    return ", ".join([*parts, "flip"])
