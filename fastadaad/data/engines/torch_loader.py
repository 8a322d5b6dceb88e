"""The torch engine: torchvision's transforms in the workers of a DataLoader; slow, the reference of the others."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from fastadaad.data.augmentation import Augmentation
from fastadaad.data.dataset import DataError, ImageFiles, Images
from fastadaad.data.image_decoding import decode, decode_resized
from fastadaad.data.pipeline import Batch, Failure, Pipeline
from fastadaad.data.resized_crop import resized_crop_windows
from fastadaad.runtime.locks import close_inherited
from fastadaad.runtime.workers import batches_of

AUTO_AUGMENTS = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}


class Request(NamedTuple):
    """Sample that a worker has to read, with its draws."""

    image_index: int
    label: int
    top: int
    left: int
    flip: bool
    cutout_center: list[int] | None
    resized_crop: np.ndarray | None
    color: list[float] | None
    auto_augment: int | None


class Response(NamedTuple):
    """Sample that a worker returns, or the reason why it is left out."""

    x_natural: Tensor | None
    label: int
    failure: Failure | None = None


class TorchPipeline(Pipeline):
    """Pipeline whose images `num_workers` processes read and augment; 0: the calling process."""

    runs_auto_augment = True

    def __init__(self, images: Images, labels: Tensor, *, num_workers: int = 2, **options: Any):
        super().__init__(images, labels, **options)
        self.num_workers = num_workers

    def _read(self, epoch: int, batches: Sequence[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            _Samples(self.images, self.augmentation),
            batch_sampler=(self._requests(epoch, batch) for batch in batches),
            num_workers=self.num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_worker,
        )
        with batches_of(loader) as batches_read:
            for x_natural, labels, failures in batches_read:
                self._skip(failures, len(labels))
                if len(labels):
                    yield x_natural.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _requests(self, epoch: int, batch: Tensor) -> list[Request]:
        draws = self._draw(epoch, batch)

        def listed(values: Tensor | None) -> list[Any]:
            return [None] * len(batch) if values is None else values.tolist()

        columns = (self.samples[batch], self.labels[batch], draws.top, draws.left, draws.flip, draws.cutout_center)
        crops = [None] * len(batch) if draws.resized_crop is None else draws.resized_crop.numpy()[:, None]
        others = listed(draws.color), listed(draws.auto_augment)
        return [Request(*row) for row in zip(*map(listed, columns), crops, *others, strict=True)]


def _begin_worker(worker: int) -> None:
    """Closes inherited locks, and ignores SIGTERM.

    A batch system sends SIGTERM to all processes of a job, and the training needs its workers to finish the step.
    """
    close_inherited()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Samples(TorchDataset[Any]):
    """Images of a pipeline in a worker."""

    def __init__(self, images: Images, augmentation: Augmentation) -> None:
        self.images, self.augmentation = images, augmentation
        name = augmentation.auto_augment
        self.auto_augment = None if name is None else AUTO_AUGMENTS[name]()

    def __getitem__(self, request: Request) -> Response:
        try:
            image = self._image(request)
        except DataError as error:
            assert isinstance(self.images, ImageFiles)
            return Response(None, request.label, Failure(self.images.path(request.image_index), str(error)))
        return Response(self._augmented(image, request), request.label)

    def _image(self, request: Request) -> Tensor:
        """Returns uint8 [C, H, W]; image files are resized."""
        images = self.images
        if not isinstance(images, ImageFiles):
            return images[request.image_index].permute(2, 0, 1)
        if request.resized_crop is None:
            return decode_resized(images, request.image_index).permute(2, 0, 1)
        image = decode(images.path(request.image_index))
        size = np.array([[image.height, image.width]])
        window = resized_crop_windows(size, request.resized_crop, self.augmentation.min_crop_scale)[0].tolist()
        return TF.pil_to_tensor(TF.resized_crop(image, *window, [images.image_size] * 2))

    def _augmented(self, image: Tensor, request: Request) -> Tensor:
        """Returns fp32 [C, H, W] in [0, 1]."""
        _, height, width = image.shape
        if self.augmentation.padding:
            image = TF.crop(TF.pad(image, [self.augmentation.padding]), request.top, request.left, height, width)
        if request.flip:
            image = TF.horizontal_flip(image)
        if self.auto_augment is not None and request.auto_augment is not None:
            # torchvision draws from torch's own generator, which is left as it was. Not torch.manual_seed, which would
            # seed the GPUs too.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(request.auto_augment)
                image = self.auto_augment(image)
        if request.color is not None:
            brightness, contrast, saturation = request.color
            image = TF.adjust_contrast(TF.adjust_brightness(image, brightness), contrast)
            image = TF.adjust_saturation(image, saturation)
        if request.cutout_center is not None:
            image = TF.erase(image, *self._cutout(request.cutout_center, height, width), torch.zeros(()).to(image))
        # A quotient, as in the other engines; TF.to_dtype multiplies by 1/255, which differs in the last bit.
        return image.float().div_(255)

    def _cutout(self, center: list[int], height: int, width: int) -> tuple[int, int, int, int]:
        """Returns (top, left, height, width) of the square, clipped to the image."""
        side = self.augmentation.cutout
        first = [max(0, middle - side // 2) for middle in center]
        end = [min(middle - side // 2 + side, size) for middle, size in zip(center, (height, width), strict=True)]
        return first[0], first[1], end[0] - first[0], end[1] - first[1]


def _collate(responses: list[Response]) -> tuple[Tensor, Tensor, list[Failure]]:
    """Returns the images of a batch, their labels, and the files that are left out."""
    images = [response.x_natural for response in responses if response.x_natural is not None]
    labels = [response.label for response in responses if response.x_natural is not None]
    failures = [response.failure for response in responses if response.failure is not None]
    # default_collate stacks images in the memory that a worker shares with its parent.
    return default_collate(images) if images else torch.empty(0), torch.tensor(labels), failures
