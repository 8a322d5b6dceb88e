"""What a weights file asks for, looked at before any of it is allocated or called.

safetensors itself compares shapes and offsets with the size of the file, and torch the storages of an archive with its
members. What neither does is here.
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

from fastadaad.runtime.file_limits import SAFETENSORS_HEADER_BYTES, UNPACKED_RATIO, VALUES, size_of

ZIP_MAGIC = b"PK\x03\x04"  # by which torch.load tells an archive from the format before torch 1.6
NUM_PICKLES = 5  # in that format: magic number, version, machine, content, names of the storages
# Of what weights_only allows, that which weights and the plain values beside them are made of. The rest, such as
# bytearray or Tensor, takes a number from the file and allocates so many bytes.
CALLABLES = re.compile(
    r"""
    collections\ (OrderedDict|Counter) | (builtins|__builtin__)\ (set|complex) | _codecs\ encode
    | torch\ (Size|device|bool|[a-z]+[0-9]+) | torch(\.cuda)?\ [A-Z][a-zA-Z0-9]+Storage
    | torch\._utils\ _rebuild_(tensor|tensor_v2|parameter|parameter_with_state)
    | argparse\ Namespace | numpy\ dtype | numpy\.(core|_core)\.multiarray\ scalar
    """,
    re.VERBOSE,
)
MAX_PROTOCOL = 3  # of pickles; weights_only warns of later ones, and knows none of their calls
GROWING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD")  # change the lowest of the values that they take
INTEGERS = ("BININT", "BININT1", "BININT2", "LONG1")


class ForbiddenCallError(ValueError):
    """A pickle asks to call what no weights need; the message is its name."""


def check_safetensors(path: Path) -> None:
    """Raises ValueError where the header is longer than the file or than any real one, or where it is no file."""
    size = size_of(path)
    with open(path, "rb") as file:
        start = file.read(8)
    header = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if header > min(size - 8, SAFETENSORS_HEADER_BYTES):
        raise ValueError(f"it has {size} bytes, and {header} of them are to be its header")


def check_torch_save(path: Path) -> None:
    """Raises ForbiddenCallError, or some other exception for a file that torch.save did not write."""
    with open(path, "rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_archive:
        _check_archive(path)
    else:
        _check_old_format(path)


def _check_archive(path: Path) -> None:
    """torch allocates for each member what the directory says, and unpacks what is compressed."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are compressed, which torch.save never does")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise ValueError("its members are larger than the file")
        if min(member.header_offset for member in members) != 0:
            raise ValueError("it begins with something else")  # where torch looks for another directory
        for member in members:
            if member.filename.endswith(".pkl"):
                for _ in _operations(io.BytesIO(archive.read(member))):
                    pass


def _check_old_format(path: Path) -> None:
    """torch allocates the storages by the numbers in the pickle, before it reads any of them."""
    size = path.stat().st_size
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for _ in range(NUM_PICKLES):
            before: list[tuple[str, Any]] = []
            for operation, argument in _operations(content):  # type: ignore[arg-type]
                if operation == "BINPERSID":  # of the tuple ("storage", type, name, place, number of elements, None)
                    (number, num_elements), *rest = before
                    if number not in INTEGERS or [name for name, _ in rest] != ["NONE", "TUPLE"]:
                        raise ValueError("it describes a storage as torch.save does not")
                    if not 0 <= num_elements <= size:
                        raise ValueError(f"it has {size} bytes, and {num_elements} elements in one storage")
                before = [*before[-2:], (operation, argument)]


def _operations(stream: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The operations of a pickle and their arguments, but for those that only remember a value."""
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
    """How many values the operations of a pickle go over, where a value that is held twice counts twice.

    A tuple of twice the tuple before, sixty times, takes 400 bytes, and to hash it takes years.
    """

    def __init__(self) -> None:
        self._stack: list[list[int] | None] = []
        """Of each value the number of those in it, which may grow; None: a mark."""
        self._remembered: dict[int, list[int] | None] = {}
        self._found, self._allowed = 0, VALUES

    def follow(self, operation: pickletools.OpcodeInfo, argument: Any) -> None:
        """Raises ValueError where they are more than a file of so many operations may have."""
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
                raise ValueError(f"it holds more than {self._allowed} values, most of them many times")

    def _taken(self, kinds: list[pickletools.StackObject]) -> list[list[int]]:
        """Values of these kinds, taken off the stack."""
        values = []
        if pickletools.stackslice in kinds:
            while (value := self._stack.pop()) is not None:
                values.append(value)
        single = [kind for kind in kinds if kind not in (pickletools.markobject, pickletools.stackslice)]
        return values + [self._stack.pop() or [0] for _ in single]
