"""Cache on disk for small facts about this machine: measurements and checks that need not be repeated.

One JSON file per entry: <cache folder>/<section>/<digest of the key>.json with the key, the value and the date.
Unreadable or unwritable entries are ignored after one warning.
"""

import atexit
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import platformdirs
import torch

import fastadaad.kernels
from fastadaad.kernels import KERNELS_VARIABLE
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.json_files import JsonError, checked, read_json
from fastadaad.runtime.locks import locked
from fastadaad.runtime.version import version

CACHE_VARIABLE = "FASTADAAD_CACHE"

DRIVER_FILE = Path("/proc/driver/nvidia/version")
DRIVER_LIBRARY = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One stored fact."""

    key: str
    value: Any
    date: str
    """Local time at which the entry was stored, to the second."""


def cache_folder() -> Path:
    """Returns $FASTADAAD_CACHE, or the folder fastadaad in the user's cache folder.

    Without a home folder, as in some containers, it is a private folder that ends with the process.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    with suppress(RuntimeError):  # of later versions of platformdirs; earlier ones return the name "~"
        folder = platformdirs.user_cache_path("fastadaad")
        if folder.is_absolute():
            return folder
    return _folder_of_process(os.getpid())


@functools.cache
def _folder_of_process(process: int) -> Path:
    _warn_once(f"the home folder of this user is unknown: nothing is kept for later runs; set {CACHE_VARIABLE}")
    folder = tempfile.mkdtemp(prefix="fastadaad-cache-")  # not a known name, which another user could have made
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def load(section: str, key: str, kind: Any = Any) -> Any | None:
    """Returns the value last stored under the key as `kind` (see json_files.py), or None."""
    entry = load_entry(section, key, kind)
    return None if entry is None else entry.value


def load_entry(section: str, key: str, kind: Any = Any) -> Entry | None:
    """Returns the entry last stored under the key, with its value as `kind`, or None."""
    entry = _read(_path(section, key), kind)
    return entry if entry is not None and entry.key == key else None


def entries(section: str, kind: Any = Any) -> list[Entry]:
    """Returns all entries of a section, the oldest first, with their values as `kind`."""
    found = [_read(path, kind) for path in (cache_folder() / section).glob("*.json")]
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.date)


def store(section: str, key: str, value: Any) -> None:
    """Stores a value that JSON can express under the key, in place of an earlier value.

    Several processes may store at once; the last one counts. Warns once if the folder cannot be written.
    """
    entry = {"key": key, "value": value, "date": datetime.now().isoformat(timespec="seconds")}
    path = _path(section, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.parent / "lock"
        lock.touch()
        with locked(lock, wait=True):  # two writers of one entry would share its temporary file
            write_atomically(path, json.dumps(entry, indent=2).encode())
    except OSError as error:
        _warn_once(f"{path.parent} cannot be written ({error.strerror}): set {CACHE_VARIABLE} to a folder that can")


def machine_key(device: torch.device | str) -> str:
    """Returns all that a fact about this machine depends on: hardware, driver, versions, digest of the kernels."""
    device = torch.device(device)
    triton = "triton " + version("triton")
    versions = f"torch {torch.__version__}, {triton}, fastadaad {version('fastadaad')}"
    kernels = f"kernels {_kernels_digest()} ({os.environ.get(KERNELS_VARIABLE, 'auto')})"
    return f"{hardware(device)}; {versions}; {kernels}"


def hardware(device: torch.device | str) -> str:
    """Returns the names of GPU and driver, or the processor, its instruction set and the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {_driver()}"
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _path(section: str, key: str) -> Path:
    return cache_folder() / section / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path, kind: Any) -> Entry | None:
    if not path.exists():
        return None
    remedy = "it counts as empty; delete it"
    try:
        entry = read_json(path, Entry, remedy)
        return replace(entry, value=checked(entry.value, kind, "value"))
    except ValueError as error:
        _warn_once(str(error) if isinstance(error, JsonError) else f"{path} cannot be read ({error}): {remedy}")
        return None


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _processor() -> str:
    try:
        return re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    except (OSError, IndexError):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def _driver() -> str:
    try:
        return "driver " + re.findall(r" (\d+\.[\d.]+) ", DRIVER_FILE.read_text())[0]
    except (OSError, IndexError):  # WSL and some containers do not have the file
        return f"CUDA driver {_cuda_driver_version()}"


def _cuda_driver_version() -> str:
    """Returns the CUDA version of the driver, such as 13000, from the driver's library, which torch has loaded too."""
    version_found = ctypes.c_int(0)
    try:
        result = ctypes.CDLL(DRIVER_LIBRARY).cuDriverGetVersion(ctypes.byref(version_found))
    except (OSError, AttributeError):
        return "of unknown version"
    return "of unknown version" if result else str(version_found.value)


def _kernels_digest() -> str:
    """Returns a digest of the C++ library and the Triton sources, which changes with every rebuilt kernel."""
    folder = Path(fastadaad.kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.so"), *folder.glob("triton/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
