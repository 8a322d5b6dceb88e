"""Header of numpy's .npy format, checked against the size of the file."""

import io
import math
from typing import IO, NamedTuple

import numpy as np

from fastadaad.runtime.untrusted_files import NPY_HEADER_BYTES, one_line

# By version of the format; later versions are for arrays with named fields.
READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpyHeader(NamedTuple):
    """Contents of an .npy file."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype


def read_npy_header(stream: IO[bytes], size: int) -> NpyHeader:
    """Reads the header of an .npy file of `size` bytes; `stream` is left at the first number.

    Raises ValueError if the file is not an .npy file of numbers, or if its shape and dtype need another size.
    """
    start = io.BytesIO(stream.read(NPY_HEADER_BYTES))
    try:
        version = np.lib.format.read_magic(start)
        if version not in READ_HEADER:
            raise ValueError(f"it is in version {version} of numpy's format")
        header = NpyHeader(*READ_HEADER[version](start))
    except Exception as error:  # the header is a Python literal, whose parser raises any type
        raise ValueError(one_line(error)) from error
    if header.dtype.hasobject:
        raise ValueError("it holds pickled objects, which are not read")
    num_bytes = math.prod(header.shape) * header.dtype.itemsize
    if min(header.shape, default=0) < 0 or start.tell() + num_bytes != size:
        raise ValueError(f"{list(header.shape)} of {header.dtype} is not what {size} bytes hold")
    stream.seek(start.tell())
    return header
