"""Stored values are loaded again, also by other processes; an unusable cache warns and is ignored."""

import shutil
import subprocess
import sys
import warnings

import pytest

from fastadaad.runtime import machine_cache
from fastadaad.runtime.machine_cache import entries, load, load_entry, machine_key, store

WRITER = """
import sys
from fastadaad.runtime.machine_cache import store
for index in range(40):
    store("numbers", f"{sys.argv[1]} {index}", index)
    store("numbers", "shared", [sys.argv[1], index])
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path / "cache"))
    machine_cache._warn_once.cache_clear()
    return tmp_path / "cache"


def test_a_stored_value_is_loaded_and_the_last_one_counts():
    assert load("numbers", "a") is None
    store("numbers", "a", 1)
    store("numbers", "a", {"b": [2.5, None]})
    store("numbers", "c", 3)
    assert load("numbers", "a") == {"b": [2.5, None]}
    assert load("letters", "a") is None
    assert {(entry.key, str(entry.value)) for entry in entries("numbers")} == {("a", "{'b': [2.5, None]}"), ("c", "3")}
    entry = load_entry("numbers", "a")
    assert entry is not None
    assert entry.date[:2] == "20"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTADAAD_CACHE": "/a"}, "/a"),
        ({"FASTADAAD_CACHE": "", "XDG_CACHE_HOME": "/b"}, "/b/fastadaad"),
        ({"FASTADAAD_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/fastadaad"),
    ],
)
def test_the_folder_is_in_the_users_cache(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(machine_cache.cache_folder()) == expected


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "a"}', b"\xff\xfe", b'{"other": 1}'])
def test_a_corrupt_entry_warns_once_and_counts_as_empty(folder, content):
    store("numbers", "a", 1)
    (path,) = (folder / "numbers").glob("*.json")
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"cannot be read.*counts as empty; delete it"):
        assert load("numbers", "a") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("numbers", "a") is None
        assert entries("numbers") == []
    store("numbers", "a", 2)
    assert load("numbers", "a") == 2


@pytest.mark.parametrize("value", [[], None, 3, {"a": "b"}])
def test_a_value_of_another_type_warns_and_counts_as_empty(value):
    store("numbers", "a", value)
    assert load("numbers", "a") == value
    with pytest.warns(UserWarning, match=r"json cannot be read \(.*value.* is not .*counts as empty; delete it"):
        assert load("numbers", "a", dict[str, int]) is None


def test_without_a_home_folder_the_cache_is_private_and_ends_with_the_process(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTADAAD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does for an unknown user
    monkeypatch.chdir(tmp_path)
    machine_cache._folder_of_process.cache_clear()
    with pytest.warns(UserWarning, match="the home folder of this user is unknown: .* set FASTADAAD_CACHE"):
        folder = machine_cache.cache_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert machine_cache.cache_folder() == folder
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_warns_once(folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"cannot be written .*: set FASTADAAD_CACHE to a folder that can"):
        store("numbers", "a", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store("numbers", "b", 1)


@pytest.mark.slow
def test_two_processes_that_store_at_once_lose_nothing(folder):
    writers = [subprocess.Popen([sys.executable, "-W", "error", "-c", WRITER, name]) for name in ("a", "b")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert {load("numbers", f"{name} {index}") for name in ("a", "b") for index in range(40)} == set(range(40))
    assert load("numbers", "shared")[1] == 39
    assert len(entries("numbers")) == 81
    assert not list(folder.rglob("*.tmp"))


def test_the_key_names_hardware_and_versions_and_changes_with_a_kernel(tmp_path, monkeypatch):
    key = machine_key("cpu")
    assert "threads" in key
    assert f"torch {machine_cache.torch.__version__}" in key
    (tmp_path / "_C.so").write_bytes(b"one")
    monkeypatch.setattr(machine_cache.fastadaad.kernels, "__file__", str(tmp_path / "__init__.py"))
    first = machine_key("cpu")
    (tmp_path / "_C.so").write_bytes(b"two")
    assert len({key, first, machine_key("cpu")}) == 3
    monkeypatch.setenv("FASTADAAD_KERNELS", "reference")
    assert machine_key("cpu") not in (key, first)


def test_the_key_names_the_gpu_and_its_driver(monkeypatch):
    monkeypatch.setattr(machine_cache.torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(machine_cache, "_driver", lambda: "driver 1.2")
    assert machine_key("cuda:1").startswith("GPU 1, driver 1.2; torch ")


DRIVER_TEXT = """NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 17:42:26 UTC 2025
GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)
"""

LIBRARY = """
int cuDriverGetVersion(int *version) { *version = 13010; return RESULT; }
"""


def test_the_driver_is_read_from_the_kernel_module(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_cache, "DRIVER_FILE", tmp_path / "version")
    (tmp_path / "version").write_text(DRIVER_TEXT)
    assert machine_cache._driver() == "driver 580.82.07"


@pytest.mark.skipif(shutil.which("cc") is None, reason="a C compiler is needed")
@pytest.mark.parametrize(("result", "expected"), [(0, "CUDA driver 13010"), (3, "CUDA driver of unknown version")])
def test_without_the_kernel_modules_file_the_drivers_library_names_its_version(tmp_path, monkeypatch, result, expected):
    (tmp_path / "cuda.c").write_text(LIBRARY.replace("RESULT", str(result)))
    library = tmp_path / f"libcuda{result}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "cuda.c"], check=True)
    monkeypatch.setattr(machine_cache, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(machine_cache, "DRIVER_LIBRARY", str(library))
    assert machine_cache._driver() == expected


def test_a_machine_without_driver_file_and_library_has_a_key_too(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_cache, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(machine_cache, "DRIVER_LIBRARY", str(tmp_path / "libcuda.so.1"))
    assert machine_cache._driver() == "CUDA driver of unknown version"
