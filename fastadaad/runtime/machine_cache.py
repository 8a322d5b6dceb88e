"""Small facts about this machine, remembered on disk: what was measured or checked once need not be again.

One JSON file per entry: <cache folder>/<section>/<digest of the key>.json with the key, the value and the date. A
memory that cannot be read or written is said once and is then no memory; it is never an error.
"""

import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import fastadaad.kernels
from fastadaad.kernels import KERNELS_VARIABLE
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.version import version

CACHE_VARIABLE = "FASTADAAD_CACHE"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One remembered fact; `date` is that of the local clock, to the second."""

    key: str
    value: Any
    date: str


def cache_folder() -> Path:
    """$FASTADAAD_CACHE, or fastadaad in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastadaad"


def recall(section: str, key: str) -> Any | None:
    """The value last remembered under the key, or None."""
    entry = recall_entry(section, key)
    return None if entry is None else entry.value


def recall_entry(section: str, key: str) -> Entry | None:
    """As recall(), with the date."""
    entry = _read(_path(section, key))
    return entry if entry is not None and entry.key == key else None


def entries(section: str) -> list[Entry]:
    """All that is remembered in a section, the oldest first."""
    found = map(_read, (cache_folder() / section).glob("*.json"))
    return sorted((entry for entry in found if entry is not None), key=lambda entry: entry.date)


def remember(section: str, key: str, value: Any) -> None:
    """Keep `value`, which JSON can express, under the key; the last one to write counts."""
    entry = {"key": key, "value": value, "date": datetime.now().isoformat(timespec="seconds")}
    path = _path(section, key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two writers of one entry would share its temporary file
            write_atomically(path, json.dumps(entry, indent=2).encode())
    except OSError as error:
        _say_once(f"{path.parent} cannot be written ({error.strerror}): set {CACHE_VARIABLE} to a folder that can")


def machine_key(device: torch.device | str) -> str:
    """All that a fact about this machine depends on, in words: hardware, driver, versions, the kernels' bytes."""
    device = torch.device(device)
    triton = "triton " + version("triton")
    versions = f"torch {torch.__version__}, {triton}, fastadaad {version('fastadaad')}"
    kernels = f"kernels {_kernels_digest()} ({os.environ.get(KERNELS_VARIABLE, 'auto')})"
    return f"{hardware(device)}; {versions}; {kernels}"


def hardware(device: torch.device | str) -> str:
    """The GPU's name and driver, or the processor's, its instruction set and the number of threads in use."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {_driver()}"
    return f"{_processor()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def _path(section: str, key: str) -> Path:
    return cache_folder() / section / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        _say_once(f"{path} cannot be read ({' '.join(str(error).split())}): it counts as empty; delete it")
        return None


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _processor() -> str:
    try:
        return re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[0]
    except (OSError, IndexError):  # not Linux, or not x86
        return platform.processor() or platform.machine()


def _driver() -> str:
    try:
        return "driver " + re.findall(r" (\d+\.[\d.]+) ", Path("/proc/driver/nvidia/version").read_text())[0]
    except (OSError, IndexError):  # WSL has the driver elsewhere
        return f"CUDA driver {torch._C._cuda_getDriverVersion()}"  # type: ignore[attr-defined]


def _kernels_digest() -> str:
    """Of the C++ library and the Triton sources, so that a rebuilt kernel is a new one."""
    folder = Path(fastadaad.kernels.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.so"), *folder.glob("triton/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
