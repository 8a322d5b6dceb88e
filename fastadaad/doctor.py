"""What this machine has: versions, devices, which backend each operation uses, what is missing and how to get it."""

import importlib.util
import os
import platform
from importlib import metadata
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fastadaad
from fastadaad import ops

PACKAGES = ("torch", "torchvision", "triton", "numpy", "scikit-learn", "safetensors", "tensorboard", "matplotlib")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _devices() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({torch.get_num_threads()} of {os.cpu_count()} threads, {torch.backends.cpu.get_cpu_capability()})"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def dali_status() -> str:
    """NVIDIA DALI, or the package to install; PyPI's `nvidia-dali` is an empty decoy and is named as such."""
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return "found"
    if _version("nvidia-dali") != "missing":
        return "nvidia-dali is an empty decoy: pip uninstall nvidia-dali, then pip install 'fastadaad[dali]'"
    return "missing (optional): pip install 'fastadaad[dali]'"


def apex_status() -> str:
    """NVIDIA apex, which is built from its source; PyPI's `apex` is an unrelated web toolkit and is named as such."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return "missing (optional): build it from NVIDIA's source; PyPI's apex is something else"
    # Looked up on disk: find_spec("apex.optimizers") would import apex, and importing the unrelated one fails.
    if not any(Path(folder, "optimizers").is_dir() for folder in spec.submodule_search_locations or ()):
        return "this apex is not NVIDIA's but an unrelated package: pip uninstall apex"
    return "found"


def summarize_ops() -> str:
    """One line: which backend serves the operations on the device in use, and why where it is the reference."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    used: dict[str, list[str]] = {}
    for row in ops.report():
        if row.device == device:
            why = f" ({row.reason})" if row.backend == "reference" else ""
            used.setdefault(row.backend + why, []).append(row.op)
    return f"operations on {device}: " + "; ".join(f"{', '.join(names)}: {backend}" for backend, names in used.items())


def print_report(console: Console) -> None:
    """Print the whole report."""
    table = Table(title=f"fastadaad {fastadaad.__version__}", show_header=False)
    table.add_row("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        table.add_row(package, _version(package))
    table.add_row("device", _devices())
    table.add_row("NVIDIA DALI", escape(dali_status()))  # [dali] is no markup
    table.add_row("NVIDIA apex", apex_status())
    console.print(table)
    table = Table(title="operations")
    for column in ("op", "device", "backend", "why"):
        table.add_column(column)
    for row in ops.report():
        table.add_row(row.op, row.device, row.backend, row.reason)
    console.print(table)
