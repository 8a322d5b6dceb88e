"""Registers the operations with torch.library and reports the backend of each of them.

The schemas are in Python, so that the operations exist without a compiler. The reference serves every device; the
C++ library replaces it on the CPU and the Triton kernels on CUDA, unless FASTADAAD_KERNELS=reference.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import fastadaad.kernels
from fastadaad.kernels import KERNELS_VARIABLE

Device = Literal["cpu", "cuda"]
Backend = Literal["c++", "triton", "reference"]

_library = torch.library.Library("fastadaad", "DEF")
_references: dict[str, tuple[str, Callable[..., Any]]] = {}  # stem -> (name in the schema, reference)
# Operations that switch_off() replaced -> (the replacing registration, which ends when it is destroyed; the reason).
_switched_off: dict[tuple[str, Device], tuple[torch.library.Library, str]] = {}


class OpBackend(NamedTuple):
    """One row of report(): the backend of `op` on a kind of device, and the reason."""

    op: str
    device: Device
    backend: Backend
    reason: str


def _kernels_wanted() -> bool:
    choice = os.environ.get(KERNELS_VARIABLE, "auto")
    if choice not in ("auto", "reference"):
        raise ValueError(f"{KERNELS_VARIABLE} is {choice!r}: set it to auto or reference")
    return choice == "auto"


def _load_cpp() -> tuple[bool, str]:
    """Loads the C++ kernels; returns True if they are in use, and the reason."""
    if not _kernels_wanted():
        return False, f"{KERNELS_VARIABLE}=reference"
    library = Path(fastadaad.kernels.__file__).with_name("_C.so")
    if not library.exists():
        return False, "not built: install again with torch and a C++ compiler present"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        return False, f"{library.name} does not load: {str(error).splitlines()[0]}"
    return True, f"{library.name} is loaded"


def _find_triton() -> tuple[bool, str]:
    """Returns True if the Triton kernels are in use, and the reason; imports nothing."""
    if not _kernels_wanted():
        return False, f"{KERNELS_VARIABLE}=reference"
    if importlib.util.find_spec("triton") is None:
        return False, "triton is not installed: pip install triton"
    return True, "triton is installed"


_cpp = _load_cpp()
_triton = _find_triton()


def _triton_launcher(stem: str) -> Callable[..., Any]:
    def launch(*arguments: Any) -> Any:
        # Imported on first use: without a GPU, Triton is never imported.
        module = importlib.import_module(f"fastadaad.kernels.triton.{stem}")
        return getattr(module, stem)(*arguments)

    return launch


def register(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Defines the operation fastadaad::<schema> with its reference, fake and kernels.

    Args:
        schema: Schema of torch.library, without the namespace.
        reference: Takes the arguments of the schema; serves every device without a kernel.
        fake: Takes the arguments of the schema; returns empty outputs.

    Returns:
        The operation.
    """
    name = schema.partition("(")[0]
    stem = name.removesuffix("_")
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastadaad::{name}", fake, lib=_library)
    if _triton[0]:
        _library.impl(name, _triton_launcher(stem), "CUDA")
    _references[stem] = name, reference
    return getattr(torch.ops.fastadaad, name).default


def fake_in_place(*arguments: Any) -> None:
    """Fake of an operation that writes to its first argument and returns nothing."""


def switch_off(stem: str, device: Device, reason: str) -> None:
    """Lets the reference serve an operation on this kind of device from now on, in compiled graphs too."""
    name, reference = _references[stem]
    library = torch.library.Library("fastadaad", "IMPL", device.upper())
    library.impl(name, reference, allow_override=True)
    _switched_off[stem, device] = library, reason


def switch_on(device: Device) -> None:
    """Reverts every switch_off() on this kind of device."""
    for stem in _references:
        library, _ = _switched_off.pop((stem, device), (None, ""))
        if library is not None:
            library._destroy()


def report() -> list[OpBackend]:
    """Returns the backend of each operation on the CPU and on CUDA; other devices use the reference."""
    kernels: tuple[tuple[Device, Backend, tuple[bool, str]], ...]
    kernels = (("cpu", "c++", _cpp), ("cuda", "triton", _triton))
    rows = []
    for stem in _references:
        for device, backend, (used, reason) in kernels:
            if (stem, device) in _switched_off:
                used, reason = False, _switched_off[stem, device][1]
            rows.append(OpBackend(stem, device, backend if used else "reference", reason))
    return rows
