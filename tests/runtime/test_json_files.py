"""Small JSON files are read as the types of a dataclass, or refused in one line that names file, fault and remedy."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pytest

from fastadaad.runtime.json_files import JsonError, checked, read_json


@dataclass(frozen=True, kw_only=True)
class Extra:
    shape: list[int]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Facts:
    name: str
    rate: float
    count: int
    norm: Literal["linf", "l2"]
    stages: tuple[tuple[str, float], ...] = ()
    pair: tuple[int, int] = (0, 0)
    parent: str | None = None
    done: bool = False
    extra: Extra | None = None
    others: dict[str, float] | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count is {self.count}")


GOOD = {"name": "a", "rate": 1, "count": 3, "norm": "l2"}


def read(path, content: Any) -> Facts:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_json(path, Facts, "delete it")


def test_a_file_is_read_as_its_dataclass(tmp_path):
    facts = Facts(
        name="ä", rate=0.5, count=3, norm="linf", stages=(("a", 0.5), ("b", 1.0)), pair=(1, 2), parent="p", done=True,
        extra=Extra(shape=[1, 2]), others={"x": 2.0}, anything=[None, {"y": 1}],
    )  # fmt: skip
    assert read(tmp_path / "f.json", asdict(facts)) == facts
    rate = read(tmp_path / "f.json", GOOD).rate
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe\x00", "can't decode byte"),
        (b"<!DOCTYPE html>", "Expecting value"),
        (b"[" * 100_000, "it is nested too deeply"),
        (b'{"name": 1, "name": 2}', "it holds a name twice"),
        (b'{"name": "a", "rate": NaN}', "it holds NaN"),
        (b'{"name": "a", "rate": -Infinity}', "it holds -Infinity"),
        (b"1" * 5000, "digits"),
        ([], "it is not an object"),
        (None, "it is not an object"),
        ({"name": "a"}, "count is missing in it"),
        (GOOD | {"x\x1b[2J": 1}, r"it holds 'x\x1b[2J', which is unknown"),
        (GOOD | {"name": 3}, "name is not a string"),
        (GOOD | {"name": None}, "name is not a string"),
        (GOOD | {"rate": "fast"}, "rate is not a finite number"),
        (GOOD | {"rate": True}, "rate is not a finite number"),
        (GOOD | {"rate": 1e300}, "rate is not a finite number"),
        (GOOD | {"count": 1.5}, "count is not a whole number"),
        (GOOD | {"count": True}, "count is not a whole number"),
        (GOOD | {"count": 2**63}, "count is not a whole number"),
        (GOOD | {"count": -1}, "count is -1"),
        (GOOD | {"norm": "l3"}, "norm is not one of linf, l2"),
        (GOOD | {"norm": []}, "norm is not one of linf, l2"),
        (GOOD | {"done": 0}, "done is not true or false"),
        (GOOD | {"stages": "ab"}, "stages is not a list"),
        (GOOD | {"stages": [["a"]]}, "an item of stages is not a list of 2"),
        (GOOD | {"pair": [1, 2, 3]}, "pair is not a list of 2"),
        (GOOD | {"extra": {"note": "x"}}, "shape is missing in extra"),
        (GOOD | {"extra": {"shape": [0.5]}}, "an item of shape is not a whole number"),
        (GOOD | {"others": {"x": []}}, "others.x is not a finite number"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_one_line(tmp_path, content, fault):
    path = tmp_path / "f.json"
    with pytest.raises(JsonError) as caught:
        read(path, content)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be read (")
    assert message.endswith("): delete it")
    assert fault in message
    assert message.isprintable()


def test_a_file_has_a_size_and_is_a_file(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b" " * 100 + b"{}")
    with pytest.raises(JsonError, match=r"it has 102 bytes and at most 50 are read"):
        read_json(path, dict[str, Any], "delete it", limit=50)
    assert read_json(path, dict[str, Any], "delete it", limit=102) == {}
    with pytest.raises(JsonError, match="it is no file, but a folder"):
        read_json(tmp_path, dict[str, Any], "delete it")
    with pytest.raises(JsonError, match="No such file"):
        read_json(tmp_path / "none", dict[str, Any], "delete it")


def test_values_of_other_files_are_checked_too():
    assert checked({"a": [1]}, dict[str, tuple[int, ...]]) == {"a": (1,)}
    with pytest.raises(ValueError, match=r"an item of facts\.a is not a whole number"):
        checked({"a": ["1"]}, dict[str, tuple[int, ...]], "facts")
