"""Extra training images, for example generated ones, from an .npz file."""

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastadaad.data.dataset import DataError, check_labels
from fastadaad.data.datasets.npy_header import NpyHeader, read_npy_header
from fastadaad.runtime.untrusted_files import check_unpacked, is_web_page, one_line

Result = TypeVar("Result")

KEYS = (("image", "label"), ("images", "labels"))
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # compression methods of numpy
# RuntimeError: an encrypted archive, or a compression that zipfile does not know.
UNREADABLE = (OSError, EOFError, ValueError, RuntimeError, zipfile.BadZipFile, zlib.error)
CHUNK_BYTES = 2**24  # read at a time, in addition to the array


class ExtraImages:
    """Arrays `image` (uint8 [M, H, W, C]) and `label` (integers [M]) of an .npz file.

    The constructor reads only the labels. The images may take most of a machine's memory, so `read_into` reads them
    directly into their final tensor.

    Args:
        path: The .npz file.
        num_classes: Number of classes; labels are in 0..num_classes - 1.
        image_shape: (H, W, C) of the data set.

    Attributes:
        labels: int64 [M].

    Raises:
        DataError: If the file is damaged or its arrays do not fit.
    """

    def __init__(self, path: Path, *, num_classes: int, image_shape: Sequence[int]) -> None:
        self._path = path
        self._image_key, label_key = self._keys()
        shape = self._read(self._image_key, self._image_shape)
        self.labels = self._read(label_key, self._labels)
        if shape[1:] != tuple(image_shape):
            raise self._broken(f"holds images of shape {list(shape[1:])}", f"give [H, W, C] = {list(image_shape)}")
        if len(self.labels) != shape[0]:
            raise self._broken(f"holds {len(self.labels)} labels for {shape[0]} images", "give one label per image")
        check_labels(path, self.labels, num_classes, "give the labels of the data set's classes")
        self._shape = shape

    def __len__(self) -> int:
        return len(self.labels)

    def read_into(self, images: Tensor) -> None:
        """Fills `images`, a contiguous uint8 [M, H, W, C], with all images."""
        assert images.shape == self._shape
        assert images.dtype == torch.uint8
        assert images.is_contiguous()

        def fill(stream: IO[bytes], header: NpyHeader) -> None:
            for chunk in images.view(-1).split(CHUNK_BYTES):
                content = stream.read(len(chunk))
                if len(content) < len(chunk):
                    raise EOFError("it ends before its last image")
                chunk.numpy()[:] = np.frombuffer(content, np.uint8)

        self._read(self._image_key, fill)

    def _keys(self) -> tuple[str, str]:
        """Returns the names of the arrays of images and labels."""
        if not self._path.is_file():
            raise DataError(f"{self._path} does not exist: set data.extra_images to an .npz file")
        if is_web_page(self._path):
            raise self._broken("is a web page, not an .npz file", "download it again")
        try:
            with zipfile.ZipFile(self._path) as archive:
                found = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
                for keys in KEYS:
                    if set(keys) <= set(found):
                        check_unpacked(self._path, sum(archive.getinfo(f"{key}.npy").file_size for key in keys))
                        return keys
        except UNREADABLE as error:
            raise self._broken(
                f"is truncated or not an .npz file ({one_line(error)})", "copy or make it again"
            ) from error
        arrays = ", ".join(found) or "none"
        raise self._broken(f"lacks the arrays image and label (found: {arrays})", "save it with these names")

    def _read(self, key: str, read: Callable[[IO[bytes], NpyHeader], Result]) -> Result:
        """Returns read(file of an array, its header)."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                member = archive.getinfo(f"{key}.npy")
                if member.compress_type not in METHODS:
                    raise ValueError("its compression is not one of numpy's")
                with archive.open(member) as stream:
                    return read(stream, read_npy_header(stream, member.file_size))
        except DataError:
            raise
        except UNREADABLE as error:
            raise self._broken(f"cannot be read ({key}: {one_line(error)})", "copy or make it again") from error

    def _image_shape(self, stream: IO[bytes], header: NpyHeader) -> tuple[int, ...]:
        shape, is_fortran, dtype = header
        if dtype != np.uint8 or len(shape) != 4:
            raise self._broken(f"holds images as {dtype} {list(shape)}", "save them as uint8 [M, H, W, C]")
        if is_fortran:
            raise self._broken("holds images column by column", "save numpy.ascontiguousarray of them")
        return shape

    def _labels(self, stream: IO[bytes], header: NpyHeader) -> Tensor:
        if header.dtype.kind not in "iu" or len(header.shape) != 1:
            found = f"{header.dtype} {list(header.shape)}"
            raise self._broken(f"holds labels as {found}", "save them as integers [M]")
        return torch.from_numpy(np.frombuffer(stream.read(), header.dtype).astype(np.int64))

    def _broken(self, what: str, remedy: str) -> DataError:
        return DataError(f"{self._path} {what}: {remedy}")
