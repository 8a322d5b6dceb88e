"""Checks of an untrusted weights file, before it allocates memory or calls anything.

safetensors itself compares shapes and offsets with the size of the file, and torch compares the storages of an archive
with its members. This module does the other checks.
"""

import io
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fastadaad.runtime.untrusted_files import SAFETENSORS_HEADER_BYTES, UNPACKED_RATIO, VALUES, size_of

ZIP_MAGIC = b"PK\x03\x04"  # torch.load distinguishes an archive from the format before torch 1.6 by it
NUM_PICKLES = 5  # in that format: magic number, version, machine, content, names of the storages
# Callables that weights and the plain values beside them need; weights_values.py replaces all of them that are neither
# torch's nor plain containers. weights_only allows more: bytearray or Tensor, for example, take a number from the file
# and allocate that many bytes.
CALLABLES = re.compile(
    r"""
    collections\ (OrderedDict|Counter|defaultdict) | _codecs\ encode
    | (builtins|__builtin__)\ (set|complex|list|dict|tuple|int|long|float|bool|str|unicode|bytes)
    | torch\ (Size|device|bool|[a-z]+[0-9]+) | torch(\.cuda)?\ [A-Z][a-zA-Z0-9]+Storage
    | torch\._utils\ _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)
    | argparse\ Namespace | pathlib(\._local)?\ (Pure)?(Posix|Windows)?Path
    | numpy\ (dtype|ndarray) | numpy\.(core|_core)\.multiarray\ (scalar|_reconstruct)
    """,
    re.VERBOSE,
)
MAX_PROTOCOL = 3  # of pickles; weights_only warns of later protocols and knows none of their calls
# Operations that change the lowest of the values that they take from the stack.
GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")


class ForbiddenCallError(ValueError):
    """A pickle calls something that weights do not need; the message is the name of the callable."""


def check_safetensors(path: Path) -> None:
    """Raises ValueError if `path` is not a file, or its header exceeds the file or SAFETENSORS_HEADER_BYTES."""
    size = size_of(path)
    with open(path, "rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if header > min(size - 8, SAFETENSORS_HEADER_BYTES):
        raise ValueError(f"its header claims {header} bytes, the file has {size}")


def check_torch_save(path: Path) -> None:
    """Raises ForbiddenCallError, or any other exception if torch.save did not write the file."""
    with open(path, "rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_archive:
        _check_archive(path)
    else:
        _check_old_format(path)


def _check_archive(path: Path) -> None:
    """Checks the directory of a zip archive: torch allocates the sizes in it, and unpacks compressed members."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, which torch.save never does")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members are larger than the file")
        if min(member.header_offset for member in members) != 0:
            raise ValueError("it does not begin with its first member")  # there, torch looks for another directory
        for member in members:
            if member.filename.endswith(".pkl"):
                for _ in _operations(io.BytesIO(archive.read(member))):
                    pass


def _check_old_format(path: Path) -> None:
    """Checks the sizes of the storages: torch allocates them by the numbers in the pickle, before it reads the data."""
    size = path.stat().st_size
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(NUM_PICKLES):
            before: list[tuple[str, Any]] = []
            for operation, argument in _operations(content):  # type: ignore[arg-type]
                if operation == "BINPERSID":  # end of ("storage", type, name, device, number of elements, None)
                    (number, num_elements), *rest = before
                    if number not in INTEGERS or [name for name, _ in rest] != ["NONE", "TUPLE"]:
                        raise ValueError("it does not describe a storage as torch.save does")
                    if not 0 <= num_elements <= size:
                        raise ValueError(f"one storage claims {num_elements} elements, the file has {size} bytes")
                before = [*before[-2:], (operation, argument)]


def _operations(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Yields the operations of a pickle and their arguments, except the operations that only memoize a value."""
    values = _Values()
    for operation, argument, _ in pickletools.genops(stream):
        if operation.name == "GLOBAL" and not CALLABLES.fullmatch(str(argument)):
            raise ForbiddenCallError(str(argument).replace(" ", "."))
        if operation.name == "PROTO" and (argument or 0) > MAX_PROTOCOL:
            raise ValueError(f"it is a pickle of protocol {argument}")
        values.follow(operation, argument)
        if not operation.name.endswith("PUT"):
            yield operation.name, argument


class _Values:
    """Counts the values that the operations of a pickle visit; a value that is held twice counts twice.

    A tuple that holds the tuple before it twice, nested sixty times, takes 400 bytes in a file; hashing it takes years.
    """

    def __init__(self) -> None:
        self._stack: list[list[int] | None] = []
        """For each value the number of values in it, which may grow; None for a mark."""
        self._remembered: dict[int, list[int] | None] = {}
        self._found, self._allowed = 0, VALUES

    def follow(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        """Counts one operation. Raises ValueError above VALUES plus UNPACKED_RATIO values per operation."""
        if operation.name == "MARK":
            self._stack.append(None)
        elif operation.name.endswith("PUT"):
            self._remembered[argument] = self._stack[-1]
        elif operation.name.endswith("GET"):
            self._stack.append(self._remembered[argument])
        else:
            taken = self._taken(operation.stack_before)
            grown = taken.pop() if operation.name in GROWING else [1]
            held = sum(number for (number,) in taken)
            grown[0] += held
            self._stack += [grown] * len(operation.stack_after)
            self._found += held
            self._allowed += UNPACKED_RATIO
            if self._found > self._allowed:
                raise ValueError(f"reading it visits more than {self._allowed} values, most of them repeatedly")

    def _taken(self, kinds: list[pickletools.StackObject]) -> list[list[int]]:
        """Removes values of these kinds from the stack and returns their counts."""
        values = []
        if pickletools.stackslice in kinds:
            while (value := self._stack.pop()) is not None:
                values.append(value)
        single = [kind for kind in kinds if kind not in (pickletools.markobject, pickletools.stackslice)]
        return values + [self._stack.pop() or [0] for _ in single]
