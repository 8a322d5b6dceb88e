"""Stand-ins for the values that training programs save beside the weights: reading a file builds none of the originals.

The command line, paths, numpy's numbers and arrays, and dicts with a default. `weights_pickles.py` has the same names.
"""

import argparse
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBER_TYPE = re.compile("b1|[iuf](1|2|4|8)")
MAX_CHANNELS = 4096


class Inert:
    """Replaces a value that nobody reads, such as a path; it keeps neither arguments nor state."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class NumberType:
    """Replaces numpy's dtype, which can have any size and crashes if it is built from a malformed state."""

    def __init__(self, code: str, *flags: bool) -> None:
        self._code = code
        self._order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._order = state[1]

    def numbers(self, content: bytes) -> np.ndarray[Any, Any]:
        """Returns `content` as numbers [N], without a copy. Raises ValueError for anything but numbers."""
        if not NUMBER_TYPE.fullmatch(self._code):
            raise ValueError(f"it holds a number of numpy's type {self._code}")
        return np.frombuffer(content, np.dtype(self._code).newbyteorder(self._order))


class Array:
    """Replaces numpy's array: the parts that the file describes it by, unchecked until the numbers are wanted."""

    _state: tuple[Any, ...] = ()

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._state = state

    def numbers(self) -> list[float]:
        """Returns the numbers in the order of the file. Raises ValueError for anything but numbers."""
        *_, kind, _, content = self._state
        return list(kind.numbers(content).tolist())


def _number(kind: NumberType, content: bytes) -> np.generic:
    """Replaces numpy's function `scalar`."""
    return kind.numbers(content)[0]


def _plain_dict(*default: Any) -> dict[Any, Any]:
    """Replaces defaultdict: the items alone."""
    return {}


def _no_bytes() -> bytes:
    """Replaces `bytes`, which takes a number and allocates it; without arguments it is how b"" is saved."""
    return b""


# Replacement and name, for torch.serialization.safe_globals.
HARMLESS: list[Any] = [
    argparse.Namespace,
    (NumberType, "numpy.dtype"),
    (Inert, "numpy.ndarray"),  # an argument of _reconstruct
    (_no_bytes, "builtins.bytes"),
    (_plain_dict, "collections.defaultdict"),
    *((Inert, f"builtins.{name}") for name in ("list", "dict", "tuple", "int", "float", "bool", "str")),  # its defaults
    *((_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),  # before numpy 2, and since
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *(
        (Inert, f"{module}.{kind}{system}Path")
        for module in ("pathlib", "pathlib._local")  # the second one in Python 3.13
        for kind in ("", "Pure")
        for system in ("", "Posix", "Windows")
    ),
]


def holds_tensors(value: Any) -> bool:
    """Returns True for a tensor, and for a mapping with a tensor among its values."""
    return isinstance(value, Tensor) or (
        isinstance(value, Mapping) and any(isinstance(item, Tensor) for item in value.values())
    )


def channel_values(value: Any) -> Tensor:
    """Returns one number per channel [C, 1, 1].

    Args:
        value: Tensor, numpy array, or flat list or tuple of numbers.

    Returns:
        The numbers as fp32.

    Raises:
        ValueError: `value` is something else, or holds no number, a non-finite one or more than MAX_CHANNELS.
    """
    try:
        if isinstance(value, Tensor):
            given: Any = value.flatten().tolist() if value.numel() <= MAX_CHANNELS else []
        else:
            given = value.numbers() if isinstance(value, Array) else value if isinstance(value, list | tuple) else []
        numbers = [float(number) for number in given[: MAX_CHANNELS + 1]]
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError):
        numbers = []
    if not 0 < len(numbers) <= MAX_CHANNELS or not all(map(math.isfinite, numbers)):
        raise ValueError("not one number per channel")
    return torch.tensor(numbers).reshape(-1, 1, 1)
