"""Damaged versions of a file, drawn from a seed: each boundary and length field of its format, then random changes."""

import random
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

LENGTHS = (0, 2**31 - 1, 2**32 - 1, 2**63)
MAX_BOUNDARIES = 60  # truncations per file; drawn at random if there are more
MAX_FIELDS = 40  # length fields per file, drawn in the same way


class Field(NamedTuple):
    """A length, an offset or a number of items in a file."""

    offset: int
    size: int
    order: str = "little"


# Signature of a structure -> its fields, relative to the signature: zip archives (a file, its entry in the directory,
# the end of the directory, its 64-bit form), numpy's arrays and PNG's chunks.
SIGNATURES: dict[bytes, tuple[Field, ...]] = {
    b"PK\x03\x04": (Field(8, 2), Field(18, 4), Field(22, 4), Field(26, 2), Field(28, 2)),
    b"PK\x01\x02": (Field(10, 2), Field(20, 4), Field(24, 4), Field(28, 2), Field(30, 2), Field(32, 2), Field(42, 4)),
    b"PK\x05\x06": (Field(8, 2), Field(10, 2), Field(12, 4), Field(16, 4), Field(20, 2)),
    b"PK\x06\x06": (Field(24, 8), Field(32, 8), Field(40, 8), Field(48, 8)),
    b"\x93NUMPY": (Field(6, 1), Field(8, 2)),
    b"IHDR": (Field(4, 4, "big"), Field(8, 4, "big"), Field(-4, 4, "big")),
    b"IDAT": (Field(-4, 4, "big"),),
}
NUMBER = re.compile(rb"\d+")
# Operations of a pickle with an argument: a string, numbers, a number of any length, memoized values.
PICKLED = re.compile(rb"[XJKMjrhq]")


def damaged(content: bytes, fields: tuple[Field, ...], seed: int, num_random: int) -> Iterator[bytes]:
    """Yields damaged versions of `content`; `fields` are the fields without a signature."""
    draw = random.Random(seed)
    found = [*fields, *_fields(content)]
    boundaries = sorted({edge for field in found for edge in (field.offset, field.offset + field.size)})
    for boundary in _some(boundaries, MAX_BOUNDARIES, draw):
        yield content[:boundary]
    for field in _some(found, MAX_FIELDS, draw):
        for value in LENGTHS:
            yield _with_field(content, field, value)
    for _ in range(num_random):
        result = content
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            result = draw.choice(CHANGES)(result, draw)
        yield result


def _fields(content: bytes) -> Iterator[Field]:
    for signature, fields in SIGNATURES.items():
        for match in re.finditer(re.escape(signature), content):
            for field in fields:
                if 0 <= match.start() + field.offset <= len(content) - field.size:
                    yield field._replace(offset=match.start() + field.offset)


def _some(items: list, number: int, draw: random.Random) -> list:
    return items if len(items) <= number else draw.sample(items, number)


def _with_field(content: bytes, field: Field, value: int) -> bytes:
    written = (value % 256**field.size).to_bytes(field.size, field.order)  # type: ignore[arg-type]
    return content[: field.offset] + written + content[field.offset + field.size :]


def _place(content: bytes, draw: random.Random) -> int:
    """Draws an offset, often near one of the ends, where most formats describe the rest."""
    place = draw.randrange(len(content) + 1)
    return draw.choice((place, min(place, draw.randrange(200)), max(place, len(content) - draw.randrange(200))))


def _block(content: bytes, draw: random.Random) -> slice:
    start = _place(content, draw)
    return slice(start, start + draw.choice((1, 4, 8, 16, 64, 512)))


def _flip_bits(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 2, 8)) if content else 0):
        changed[min(_place(content, draw), len(content) - 1)] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: _place(content, draw)]


def _zero(content: bytes, draw: random.Random) -> bytes:
    block = _block(content, draw)
    return content[: block.start] + bytes(len(content[block])) + content[block.stop :]


def _remove(content: bytes, draw: random.Random) -> bytes:
    block = _block(content, draw)
    return content[: block.start] + content[block.stop :]


def _duplicate(content: bytes, draw: random.Random) -> bytes:
    block = _block(content, draw)
    return content[: block.stop] + content[block] * draw.choice((1, 1, 50)) + content[block.stop :]


def _insert(content: bytes, draw: random.Random) -> bytes:
    place = _place(content, draw)
    return content[:place] + draw.randbytes(draw.randrange(1, 64)) + content[place:]


def _length_anywhere(content: bytes, draw: random.Random) -> bytes:
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    return _with_field(content, Field(_place(content, draw), size, order), draw.choice(LENGTHS))


def _number(content: bytes, draw: random.Random) -> bytes:
    """Replaces a number in decimal digits, as in JSON."""
    return _replaced(content, NUMBER, lambda match: str(draw.choice((*LENGTHS, -1, 1e308, "null"))).encode(), draw)


def _pickled(content: bytes, draw: random.Random) -> bytes:
    """Changes an argument of an operation of a pickle."""
    return _replaced(content, PICKLED, lambda match: match[0] + draw.randbytes(1), draw)


def _replaced(content: bytes, pattern: re.Pattern, change: Callable[[re.Match], bytes], draw: random.Random) -> bytes:
    matches = list(pattern.finditer(content))
    if not matches:
        return content
    match = draw.choice(matches)
    return content[: match.start()] + change(match) + content[match.end() :]


CHANGES = (*(_flip_bits, _truncate, _zero, _remove, _duplicate, _insert, _length_anywhere, _number, _pickled),)
