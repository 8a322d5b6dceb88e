"""torch.compile as the package uses it: one graph per function, and what was compiled is kept on disk."""

import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastadaad.runtime.machine_cache import CACHE_VARIABLE, cache_folder

# Inductor's. Importing torch._dynamo, as a first optimiser step does, sets it to a folder in /tmp where it is not set.
COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def one_graph(function: Callable, **options: Any) -> Callable:
    """`function` compiled by torch.compile as one graph per shape of its inputs; `options` are torch.compile's.

    Where torch can, each call of this counts its recompilations for itself: without that, a process that trains nine
    students one after the other meets torch's limit, which is per function.
    """
    keep_on_disk()
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_of_use)
    options = {"fullgraph": True, "dynamic": False} | options
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options.setdefault("isolate_recompiles", True)
    return torch.compile(function, **options)


def compile_cache() -> Path:
    """Where torch.compile keeps what it compiled: $TORCHINDUCTOR_CACHE_DIR, or a folder that outlives a reboot.

    torch's own default in the temporary folder counts as not set.
    """
    chosen = os.environ.get(COMPILE_CACHE_VARIABLE)
    return Path(chosen) if chosen and not _is_default(Path(chosen)) else cache_folder() / "compile"


def keep_on_disk() -> None:
    """Let torch.compile use compile_cache(): the next process that compiles the same finds it there."""
    folder = compile_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be made ({error.strerror}): what is compiled goes to a temporary folder; set "
            f"{CACHE_VARIABLE}",
            stacklevel=3,
        )
        return
    os.environ[COMPILE_CACHE_VARIABLE] = str(folder)


def _is_default(folder: Path) -> bool:
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def _is_of_use(record: logging.LogRecord) -> bool:
    """Not that a machine has the CUDA toolkit and no GPU, which torch says when it compiles C++ there."""
    return not record.getMessage().startswith("No CUDA runtime is found")
