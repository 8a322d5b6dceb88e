"""Engines by name; each is imported when it is used, as DALI may not be installed."""

import importlib.util
import warnings
from importlib import metadata
from typing import Any

from torch import Tensor

from fastadaad.config import Engine
from fastadaad.data.dataset import ImageFiles, Images
from fastadaad.data.pipeline import Pipeline

# Module and class. The resident engine reads no files, so it has no workers.
ENGINES = {
    "resident": ("resident", "ResidentPipeline"),
    "dali": ("dali", "DaliPipeline"),
    "torch": ("torch_loader", "TorchPipeline"),
}


def make_pipeline(engine: Engine, images: Images, labels: Tensor, *, num_workers: int = 2, **options: Any) -> Pipeline:
    """Makes a pipeline of an engine.

    Args:
        engine: "resident" (arrays only), "dali", "torch", or "auto": resident for arrays; for image files dali, or
            torch with a warning if DALI is not installed.
        images: uint8 [M, H, W, C] or ImageFiles.
        labels: int64 [M].
        num_workers: Number of threads of dali or processes of torch.
        **options: Arguments of Pipeline.

    Returns:
        Pipeline; every engine uses the same samples and random numbers for a batch.

    Raises:
        ValueError: If the engine cannot serve these images or is not installed.
    """
    if engine == "auto":
        engine = _chosen(images)
    module, name = ENGINES[engine]
    workers = {} if engine == "resident" else {"num_workers": num_workers}
    return getattr(importlib.import_module(f"fastadaad.data.engines.{module}"), name)(
        images, labels, **workers, **options
    )


def dali_status() -> str:
    """Returns "found", or the command that installs NVIDIA DALI.

    PyPI's `nvidia-dali` is an empty decoy and is named as such.
    """
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return "found"
    try:
        metadata.version("nvidia-dali")
    except metadata.PackageNotFoundError:
        return "missing (optional): pip install 'fastadaad[dali]'"
    return "nvidia-dali is an empty decoy: pip uninstall nvidia-dali, then pip install 'fastadaad[dali]'"


def _chosen(images: Images) -> Engine:
    if not isinstance(images, ImageFiles):
        return "resident"
    status = dali_status()
    if status == "found":
        return "dali"
    warnings.warn(f"image files are read by torch, which is slower than NVIDIA DALI: {status}", stacklevel=3)
    return "torch"
