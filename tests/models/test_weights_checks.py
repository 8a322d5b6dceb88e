"""Weights files that claim more than they hold are refused in one line, before anything is allocated or called."""

import argparse
import collections
import contextlib
import cProfile
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fastadaad.models import WeightsError, load_model, read_state_dict
from fastadaad.models.weights_checks import check_safetensors, check_torch_save
from fastadaad.models.weights_pickles import check_pickle
from fastadaad.models.weights_values import HARMLESS
from fastadaad.runtime.untrusted_files import KEYS, SAFETENSORS_HEADER_BYTES, TENSORS

MANY = 2**33  # bytes: more than a test may allocate


def error_of(path: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        read_state_dict(path)
    message = str(caught.value)
    assert message.startswith(f"{path} ")
    assert "\n" not in message
    assert not isinstance(caught.value.__cause__, MemoryError)
    return message.removeprefix(f"{path} ")


def safetensors(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(shape: list[int], begin: int, end: int) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("surplus", [-1, 1, 4, 5, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 100])
def test_an_incomplete_safetensors_header_is_refused(tmp_path, surplus):
    path = tmp_path / "w.safetensors"
    whole = safetensors({"a": entry([1], 0, 4)}, bytes(4))
    path.write_bytes(struct.pack("<Q", len(whole) - 12 + surplus) + whole[8:])
    assert error_of(path).startswith("is not a safetensors file or is corrupt (")


def test_a_long_safetensors_header_is_refused_unread(tmp_path):
    path = tmp_path / "w.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", SAFETENSORS_HEADER_BYTES + 1))
        file.truncate(2 * SAFETENSORS_HEADER_BYTES)  # zeros of a sparse file, which use no disk space
    assert f"its header claims {SAFETENSORS_HEADER_BYTES + 1} bytes" in error_of(path)


@pytest.mark.parametrize(
    ("shape", "begin", "end"),
    [
        ([2], 0, 8),
        ([1], 0, 2**63),
        ([2**31, 2**31, 4], 0, 4),
        ([2**62, 4], 0, 4),
        ([1], 4, 8),
        ([1], 4, 0),
        ([-1], 0, 4),
        ([2], 0, 4),
        ([MANY], 0, 4),
    ],
    ids=str,
)
def test_a_tensor_outside_its_safetensors_file_is_refused(tmp_path, shape, begin, end):
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors({"a": entry(shape, begin, end)}, bytes(4)))
    assert error_of(path).startswith("is not a safetensors file or is corrupt (")


def archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """Writes a torch.save file around a pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"w/{name}", content)
    return path


def saved(content: object, **options) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def called(module: str, name: str, *arguments: bytes) -> bytes:
    """Returns a pickle that calls a function."""
    return b"\x80\x02c%s\n%s\n%s%sR." % (module.encode(), name.encode(), b"".join(arguments), b"t")


NUMBER = b"\x8a\x05" + MANY.to_bytes(5, "little")


@pytest.mark.parametrize(
    "name",
    [
        *("builtins.bytearray", "torch.Tensor", "torch.FloatTensor", "torch.storage.UntypedStorage", "os.system"),
        *("torch.storage.TypedStorage", "torch._utils._rebuild_qtensor", "torch.cuda.FloatTensor", "builtins.eval"),
    ],
)
def test_a_call_that_could_fill_the_memory_is_refused(tmp_path, name):
    module, _, function = name.rpartition(".")
    message = error_of(archive(tmp_path / "w.pt", called(module, function, b"(", NUMBER)))
    assert message.startswith(f"is refused: loading it calls {name}, which could run")
    old = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    (tmp_path / "w.pt").write_bytes(old + called(module, function, b"(", NUMBER))
    assert error_of(tmp_path / "w.pt").startswith(f"is refused: loading it calls {name}, which could run")


@pytest.mark.parametrize("kind", ["V8589934592", "S8589934592", "O"])
def test_a_numpy_scalar_must_be_a_number(tmp_path, kind):
    dtype = b"cnumpy\ndtype\nX" + struct.pack("<I", len(kind)) + kind.encode() + b"\x85R"
    path = archive(tmp_path / "w.pt", called("numpy._core.multiarray", "scalar", b"(", dtype, b"N"))
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


@pytest.mark.parametrize("zipped", [True, False])
def test_values_that_training_programs_save_beside_the_weights_are_accepted(tmp_path, zipped):
    """The values include every number type that HARMLESS names."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], momentum=0.9)
    content = {
        "model": {"a": torch.ones(2), "b": torch.nn.Parameter(torch.ones(3)), "c": torch.ones(1, dtype=torch.bfloat16)},
        "optimizer": optimizer.state_dict(),
        "scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5]).state_dict(),
        "milestones": collections.Counter([3, 5]),
        "args": argparse.Namespace(lr=0.1, classes={1, 2}),
        "numbers": [np.float64(0.5), np.float32(0.5), np.float16(0.5), np.int64(3), np.int32(3), np.bool_(True)],
        "places": [torch.device("cpu"), torch.float32, torch.bool, torch.Size([3]), 1j, 2**70, b"bytes", None],
        "random": torch.get_rng_state(),
    }
    path = tmp_path / "w.pt"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    assert {name: tensor.tolist() for name, tensor in read_state_dict(path).items()} == {
        "a": [1, 1],
        "b": [1] * 3,
        "c": [1],
    }


def test_numpy_numbers_are_read_unchanged(tmp_path):
    numbers = [np.dtype(kind).type(3) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u4", "u8", "b1")]
    torch.save(numbers, tmp_path / "w.pt")
    with torch.serialization.safe_globals(HARMLESS):
        read = torch.load(tmp_path / "w.pt", weights_only=True)
    assert read == [3] * 9 + [True]
    assert [number.dtype for number in read] == [number.dtype for number in numbers]


def numpys_number(state: tuple, content: bytes) -> bytes:
    """Returns the pickle of a float64 whose type is built from `state`."""
    kind = b"cnumpy\ndtype\nX\x02\0\0\0f8\x89\x88\x87R" + pickle.dumps(state, 2)[2:-1] + b"b"
    encoded = b"c_codecs\nencode\nX\x08\0\0\0" + content + b"X\x06\0\0\0latin1\x86R"
    return called("numpy._core.multiarray", "scalar", b"(", kind, encoded)


@pytest.mark.parametrize(("order", "content"), [("<", b"\0\0\0\0\0\0\x08@"), (">", b"@\x08\0\0\0\0\0\0")])
def test_a_numpy_number_may_have_either_byte_order(tmp_path, order, content):
    state = (3, order, None, None, None, -1, -1, 0)
    with torch.serialization.safe_globals(HARMLESS):
        assert torch.load(archive(tmp_path / "w.pt", numpys_number(state, content)), weights_only=True) == 3


# The first state lacks a value, which crashes numpy.
@pytest.mark.parametrize("state", [(3, "N", None, -1, -1, 0), (3,), (), (3, None), 3, (3, 7)], ids=str)
def test_numpys_types_are_not_built_from_a_file(tmp_path, state):
    path = archive(tmp_path / "w.pt", numpys_number(state, bytes(8)))
    assert error_of(path).startswith(("is not a torch.save file or is corrupt", "holds no state dict"))


def test_a_compressed_archive_is_refused_without_unpacking(tmp_path):
    path = archive(tmp_path / "w.pt", b"\x80\x02}." + bytes(2**26), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


def directory_entry(content: bytearray, name: bytes) -> int:
    """Returns the offset of a member's entry in the directory of an archive."""
    return content.rindex(b"PK\x01\x02", 0, content.rindex(name))


@pytest.mark.parametrize("size", [2**16, 2**31 - 1, 2**32 - 2])
def test_a_member_larger_than_its_archive_is_refused(tmp_path, size):
    content = bytearray(saved({"a": torch.ones(5)}))
    place = directory_entry(content, b"data/0")
    content[place + 20 : place + 28] = struct.pack("<II", size, size)
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


def test_an_archive_behind_another_file_is_refused(tmp_path):
    """If its offsets count from the start of the archive, Python and torch find different directories."""
    path = tmp_path / "w.pt"
    whole = saved({"a": torch.ones(5)})
    path.write_bytes(whole)
    assert read_state_dict(path)["a"].tolist() == [1] * 5
    path.write_bytes(whole[:200] + whole)
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


def with_count(content: bytes, old: int, new: int) -> bytes:
    """Returns an old-format torch.save file whose storage claims another number of elements."""
    before = b"K" + bytes([old]) + b"Nt"  # the last two members of a tuple
    assert content.count(before) == 1
    return content.replace(before, b"\x8a\x05" + new.to_bytes(5, "little") + b"Nt")


@pytest.mark.parametrize("count", [5, 2**31 - 1, MANY])
def test_a_storage_larger_than_a_file_in_the_old_format_is_refused(tmp_path, count):
    path = tmp_path / "w.pt"
    path.write_bytes(with_count(saved({"a": torch.ones(5)}, _use_new_zipfile_serialization=False), 5, count))
    if count == 5:
        assert read_state_dict(path)["a"].tolist() == [1] * 5
    else:
        assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"K\x05Nt", b"K\x05K\x05t"),  # a view of a storage
        lambda content: content.replace(b"K\x05Nt", b"K\x05q\xff0h\xffNt"),  # a memoized number
        lambda content: content.replace(b"Q", b"0h\x07Q", 1),  # a memoized tuple
    ],
)
def test_a_storage_described_in_another_way_is_refused(tmp_path, change: Callable[[bytes], bytes]):
    content = saved({"a": torch.ones(5)}, _use_new_zipfile_serialization=False)
    path = tmp_path / "w.pt"
    path.write_bytes(change(content))
    assert path.read_bytes() != content
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_that_repeats_one_number_has_a_size_limit(tmp_path, zipped):
    path = tmp_path / "w.pt"
    path.write_bytes(saved({"a": torch.ones(1).expand(2**20, 2**20)}, _use_new_zipfile_serialization=zipped))
    assert error_of(path) == f"holds a of {2**40} elements, more than its bytes: fetch it again"
    path.write_bytes(saved({"a": torch.ones(1).expand(2**10, 2**10)}, _use_new_zipfile_serialization=zipped))
    assert read_state_dict(path)["a"].shape == (2**10, 2**10)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_dict_that_holds_itself_is_refused(tmp_path, zipped):
    content: dict[str, object] = {}
    content["model"] = content
    path = tmp_path / "w.pt"
    path.write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    assert error_of(path).startswith("holds no state dict")


def test_metadata_of_safetensors_is_not_executed(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(save({"a": torch.ones(1)}, {"config": "!!python/object/apply:os.system [exit]"}))
    assert read_state_dict(path)["a"].tolist() == [1]


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="it is no file, but a folder, a pipe or a device"):
        check_safetensors(tmp_path / "w.safetensors")


def test_a_long_name_is_read_in_linear_time(tmp_path):
    """The name has a million letters; a pattern that tries each of its "norm" separately takes quadratic time."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors({250_000 * "norm": entry([1], 0, 4)}, bytes(4)))
    assert list(map(len, read_state_dict(path))) == [10**6]


# A tuple that holds the tuple before it twice, nested sixty times; and a dict of 10,000 items.
DOUBLED = b"X\1\0\0\0xq\0" + b"".join(b"(h%ch%ctq%c" % (i, i, i + 1) for i in range(60)) + b"h\x3c"
LONG = b"}q\0(" + b"".join(b"M%sK\1" % struct.pack("<H", key) for key in range(10_000)) + b"u"


@pytest.mark.parametrize(
    "pickled",
    [
        *(b"}" + DOUBLED + b"K\1s", b"c__builtin__\nset\n](" + DOUBLED + b"e\x85R", DOUBLED),
        b"(" + LONG + 9_000 * b"ccollections\nCounter\nh\0\x85R" + b"t",
    ],
    ids=["key", "set", "tuple", "counters"],
)
def test_a_pickle_that_would_take_years_is_refused(tmp_path, pickled):
    """Each file is below 300 kB; hashing one of the first three takes years, the last one counts 90 million items."""
    path = archive(tmp_path / "w.pt", b"\x80\2" + pickled + b".")
    assert path.stat().st_size < 300_000
    with pytest.raises(ValueError, match="values, most of them repeatedly"):
        check_torch_save(path)
    assert error_of(path) == "is not a torch.save file or is corrupt: fetch it again"


@pytest.mark.slow
def test_a_large_pickle_is_read(tmp_path):
    """The pickle is long and deep, and many of its values share others."""
    shared = (0.9, 0.999)
    content = {f"{number}": {"step": number, "betas": shared, "items": list(range(50))} for number in range(3_000)}
    deep: list = []
    for _ in range(100):
        deep = [deep, shared]
    torch.save(
        {"model": {"a": torch.ones(2)}, "state": content, "deep": deep, "long": list(range(200_000))}, tmp_path / "w.pt"
    )
    assert read_state_dict(tmp_path / "w.pt")["a"].tolist() == [1, 1]


def text(content: str) -> bytes:
    """Returns the operation that puts a string onto the stack."""
    encoded = content.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def nested(codec: str, times: int, content: str) -> bytes:
    """Returns calls of encode around each other."""
    return times * b"c_codecs\nencode\n" + text(content) + times * (text(codec) + b"\x86R")


REPEATED = text(1000 * "a") + b"q\1" + text("latin1") + b"q\2" + 1000 * b"c_codecs\nencode\nh\1h\2\x86R"


@pytest.mark.parametrize(
    "pickled",
    [
        nested("hex", 25, "aa"),
        nested("punycode", 1, "".join(map(chr, range(200, 3000)))),
        nested("latin-1", 1, "a"),
        nested("latin1", 2, "a"),
        b"c_codecs\nencode\n" + text("a") + b"\x85R",
        REPEATED,
    ],
    ids=["hex", "punycode", "other name", "nested", "no codec", "repeated"],
)
def test_encode_takes_one_codec_and_each_text_once(tmp_path, pickled):
    message = error_of(archive(tmp_path / "w.pt", b"\x80\2(" + pickled + b"t."))
    assert message.startswith("is refused: loading it calls _codecs.encode with other arguments than torch.save writes")


SIXTY = (60 * "long").encode()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("builtins.complex", text("1" * 100)),
        ("builtins.set", text("many letters")),
        ("builtins.bytes", b"K\5"),
        ("collections.Counter", b"]"),
        ("torch.Size", text("5")),
        ("torch.Size", b"(I-1\nt".replace(b"I-1\n", b"J" + struct.pack("<i", -1))),
        ("torch.device", b"X" + struct.pack("<I", len(SIXTY)) + SIXTY),
        ("torch._utils._rebuild_tensor", b"NK\0)K\1\x85"),
        ("torch._utils._rebuild_parameter", b"N\x88N"),
        ("argparse.Namespace", b"N"),
        ("numpy.dtype", b"K\1"),
    ],
    ids=str,
)
def test_a_function_that_weights_need_is_not_called_with_other_arguments(name, arguments):
    module, _, function = name.rpartition(".")
    with pytest.raises(ValueError, match=f"^{name} with other arguments than torch.save writes$"):
        check_pickle(io.BytesIO(called(module, function, b"(" + arguments)), 100)


@pytest.mark.parametrize("name", ["torch.float32", "builtins.list", "numpy.ndarray", "torch.FloatStorage"])
def test_a_type_that_a_pickle_may_name_is_not_called(name):
    module, _, function = name.rpartition(".")
    with pytest.raises(ValueError, match=f"^{name}$"):
        check_pickle(io.BytesIO(called(module, function, b"(")), 100)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("described", [b"K\x00K\x06\x85", b"K\x01K\x05\x85"], ids=["size", "offset"])
def test_a_tensor_that_exceeds_its_storage_is_refused(tmp_path, zipped, described):
    """torch enlarges the storage of a file in the old format, to any size."""
    content, right = saved({"a": torch.ones(5)}, _use_new_zipfile_serialization=zipped), b"K\x00K\x05\x85"
    assert content.count(right) == 1
    (tmp_path / "w.pt").write_bytes(content.replace(right, described))
    if zipped:
        with zipfile.ZipFile(io.BytesIO(content)) as whole:
            archive(tmp_path / "w.pt", whole.read("archive/data.pkl").replace(right, described))
    with pytest.raises(ValueError, match="a tensor has element 5 of a storage of 5"):
        check_torch_save(tmp_path / "w.pt")
    assert error_of(tmp_path / "w.pt") == "is not a torch.save file or is corrupt: fetch it again"


def state_dict_with(attribute: str) -> io.BytesIO:
    """Returns the pickle of an OrderedDict with an attribute."""
    return io.BytesIO(b"\x80\2ccollections\nOrderedDict\n)R}" + text(attribute) + b"K\3sb.")


@pytest.mark.parametrize("attribute", ["items", "get", "__class__"])
def test_a_state_dict_keeps_its_methods(attribute):
    check_pickle(state_dict_with("_metadata"), 100)
    with pytest.raises(ValueError, match="gives a collections"):
        check_pickle(state_dict_with(attribute), 100)


def keys(numbers: list[int]) -> bytes:
    """Returns a pickle of a dict with these keys."""
    return b"\x80\2}(" + b"".join(b"\x8a\x0a" + n.to_bytes(10, "little") + b"N" for n in numbers) + b"u."


def test_keys_that_could_collide_are_few():
    """The hash of a multiple of 2**61 - 1 is 0: a dict of n such keys takes n * n / 2 comparisons."""
    colliding = [n * (2**61 - 1) for n in range(1, KEYS + 2)]
    assert {hash(n) for n in colliding} == {0}
    check_pickle(io.BytesIO(keys(colliding[:KEYS])), 100)
    with pytest.raises(ValueError, match="could collide"):
        check_pickle(io.BytesIO(keys(colliding)), 100)
    check_pickle(io.BytesIO(keys(list(range(2 * KEYS)))), 100)


@pytest.mark.parametrize("operation", [b"0", b"2", b"I1\n", b"S'a'\n", b"(i os\nsystem\n", b"]\x94"])
def test_an_operation_that_torch_does_not_write_is_refused(operation):
    with pytest.raises(ValueError, match="it has "):
        check_pickle(io.BytesIO(b"\x80\2N" + operation + b"."), 100)


def calls_of(read: Callable[[], object]) -> int:
    """Counts the calls of functions, which measure the work without a clock."""
    profile = cProfile.Profile()
    with contextlib.suppress(ValueError):
        profile.runcall(read)
    return sum(entry.callcount for entry in profile.getstats())


@pytest.mark.parametrize(
    "name",
    [
        "layer{}.weight",
        "student.{}.weight",
        "net.module.student.{}.weight",
        "0.{}.weight",
        "block1.layer.{}.conv1.weight",
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_many_tensors_are_read_in_linear_time(tmp_path, name, suffix):
    counts = []
    for number in (100, 400):
        weights = {name.format(index): torch.zeros(1) for index in range(number)}
        (tmp_path / f"w.{suffix}").write_bytes(save(weights) if suffix == "safetensors" else saved(weights))
        counts.append(calls_of(lambda: load_model("cnn-4", checkpoint=tmp_path / f"w.{suffix}")))
    assert counts[1] < 4 * counts[0]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_names_at_most_so_many_tensors(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    one = torch.zeros(1)
    if suffix == "safetensors":
        path.write_bytes(safetensors({f"a{index}": entry([0], 0, 0) for index in range(TENSORS + 1)}))
        assert error_of(path).startswith(f"is not a safetensors file or is corrupt (it names {TENSORS + 1} tensors")
    else:
        path.write_bytes(saved({f"a{index}": one.detach() for index in range(TENSORS + 1)}))
        with pytest.raises(ValueError, match=f"it describes more than {TENSORS} tensors"):
            check_torch_save(path)
