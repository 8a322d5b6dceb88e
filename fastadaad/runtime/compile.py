"""torch.compile with the defaults of this package: one graph per function, and a cache on disk."""

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

# Variable of Inductor. Importing torch._dynamo, as a first optimizer step does, sets it to a folder in /tmp if unset.
COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def one_graph(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compiles a function by torch.compile as one graph per shape of its inputs.

    If torch supports it, the result of each call counts its own recompilations: otherwise a process that trains nine
    students in a row exceeds torch's limit, which is per function.

    Args:
        function: Function without graph breaks.
        **options: Keyword arguments of torch.compile.
    """
    keep_on_disk()
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_useful)
    options = {"fullgraph": True, "dynamic": False} | options
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        options.setdefault("isolate_recompiles", True)
    return torch.compile(function, **options)


def compile_cache() -> Path:
    """Returns the cache folder of torch.compile: $TORCHINDUCTOR_CACHE_DIR, or a folder that survives a reboot.

    torch's own default in the temporary folder counts as not set.
    """
    chosen = os.environ.get(COMPILE_CACHE_VARIABLE)
    return Path(chosen) if chosen and not _is_default(Path(chosen)) else cache_folder() / "compile"


def keep_on_disk() -> None:
    """Sets the cache folder of torch.compile to compile_cache(), where later processes find what was compiled."""
    folder = compile_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"{folder} cannot be made ({error.strerror}): compiled code goes to a temporary folder; set "
            f"{CACHE_VARIABLE}",
            stacklevel=3,
        )
        return
    os.environ[COMPILE_CACHE_VARIABLE] = str(folder)


def _is_default(folder: Path) -> bool:
    return folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith("torchinductor_")


def _is_useful(record: logging.LogRecord) -> bool:
    """Drops torch's warning that a machine has the CUDA toolkit and no GPU, which it logs when it compiles C++."""
    return not record.getMessage().startswith("No CUDA runtime is found")
