"""More images for training, such as generated ones, from an .npz file."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError
from fastadaad.data.file_checks import check_labels, is_web_page, one_line

Result = TypeVar("Result")

KEYS = (("image", "label"), ("images", "labels"))
# By version of numpy's format; later ones are for arrays with names.
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
CHUNK_BYTES = 2**24  # read at a time, beside the array itself


class ExtraImages:
    """uint8 images of `image_shape` (H, W, C) and integer labels from the arrays image and label of an .npz file.

    Only the labels are read at once: the images may be most of a machine's memory, and `read_into` puts them where they
    are to stay. Raises DataError for a file that does not hold these.
    """

    def __init__(self, path: Path, *, num_classes: int, image_shape: Sequence[int]) -> None:
        self._path = path
        self._image_key, label_key = self._keys()
        shape = self._read(self._image_key, self._image_header)
        self.labels = self._read(label_key, self._labels)
        """int64 [M]."""
        if shape[1:] != tuple(image_shape):
            raise self._broken(f"holds images of shape {list(shape[1:])}", f"give [H, W, C] = {list(image_shape)}")
        if len(self.labels) != shape[0]:
            raise self._broken(f"holds {len(self.labels)} labels for {shape[0]} images", "give one label per image")
        check_labels(path, self.labels, num_classes, "give the labels of the data set's classes")
        self._shape = shape

    def __len__(self) -> int:
        return len(self.labels)

    def read_into(self, images: Tensor) -> None:
        """Fills `images`, contiguous uint8 [M, H, W, C], with all images."""
        assert images.shape == self._shape
        assert images.dtype == torch.uint8
        assert images.is_contiguous()

        def fill(stream: IO[bytes]) -> None:
            self._image_header(stream)
            for chunk in images.view(-1).split(CHUNK_BYTES):
                content = stream.read(len(chunk))
                if len(content) < len(chunk):
                    raise EOFError("it ends before its last image")
                chunk.numpy()[:] = np.frombuffer(content, np.uint8)

        self._read(self._image_key, fill)

    def _keys(self) -> tuple[str, str]:
        """Names of the arrays of images and of labels."""
        if not self._path.is_file():
            raise DataError(f"{self._path} does not exist: set data.extra_images to an .npz file")
        if is_web_page(self._path):
            raise self._broken("is a web page, not an .npz file", "download it again")
        try:
            with zipfile.ZipFile(self._path) as archive:
                found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except (OSError, zipfile.BadZipFile) as error:
            raise self._broken(f"is truncated or no .npz file ({one_line(error)})", "copy or make it again") from error
        for keys in KEYS:
            if set(keys) <= set(found):
                return keys
        arrays = ", ".join(found) or "none"
        raise self._broken(f"lacks the arrays image and label (found: {arrays})", "save it with these names")

    def _read(self, key: str, read: Callable[[IO[bytes]], Result]) -> Result:
        """What `read` makes of the file of an array."""
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(f"{key}.npy") as stream:
                return read(stream)
        except DataError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise self._broken(f"cannot be read ({key}: {one_line(error)})", "copy or make it again") from error

    def _image_header(self, stream: IO[bytes]) -> tuple[int, ...]:
        """The shape of the images, of which `stream` then holds the pixels."""
        version = np.lib.format.read_magic(stream)
        if version not in READ_HEADER:
            raise self._broken(f"holds images in version {version} of numpy's format", "save them with numpy.savez")
        shape, is_fortran, dtype = READ_HEADER[version](stream)
        if dtype != np.uint8 or len(shape) != 4:
            raise self._broken(f"holds images as {dtype} {list(shape)}", "save them as uint8 [M, H, W, C]")
        if is_fortran:
            raise self._broken("holds images column by column", "save numpy.ascontiguousarray of them")
        return shape

    def _labels(self, stream: IO[bytes]) -> Tensor:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise self._broken(f"holds labels as {labels.dtype} {list(labels.shape)}", "save them as integers [M]")
        return torch.from_numpy(labels.astype(np.int64))

    def _broken(self, what: str, remedy: str) -> DataError:
        return DataError(f"{self._path} {what}: {remedy}")
