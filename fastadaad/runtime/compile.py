"""torch.compile with the defaults of this package: one graph per function, and a cache on disk."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastadaad.config import CompilePreset
from fastadaad.runtime.machine_cache import CACHE_VARIABLE, cache_folder
from fastadaad.runtime.untrusted_files import one_line

# Variable of Inductor. Importing torch._dynamo, as a first optimizer step does, sets it to a folder in /tmp if unset.
COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

# Options of Inductor by preset. `long` is for trainings of hours: Inductor writes several kernels for each product and
# convolution, times them beside cuDNN's and cuBLAS's, and tunes its other kernels' block sizes one by one. A 1x1
# convolution becomes a product, so that it has these kernels too. Without Inductor's own CUDA graphs: mode graph
# captures the whole step.
PRESETS: dict[CompilePreset, dict[str, Any]] = {
    "default": {},
    "long": {
        "max_autotune": True,
        "coordinate_descent_tuning": True,
        "conv_1x1_as_mm": True,
        "triton.cudagraphs": False,
    },
}


def preset_options(preset: CompilePreset) -> dict[str, Any]:
    """Returns the keyword arguments of torch.compile for a preset, as compile_options of a Distiller has them."""
    return {"options": dict(PRESETS[preset])} if PRESETS[preset] else {}


def one_graph(
    function: Callable[..., Any], *, name: str = "the function", required: bool = False, **options: Any
) -> Callable[..., Any]:
    """Compiles a function by torch.compile as one graph per shape of its inputs.

    If torch cannot hold the function in one graph, the first call warns, and this and later calls run uncompiled.

    The result of each call counts its own recompilations: otherwise a process that trains nine students in a row
    exceeds torch's limit, which is per function.

    Args:
        function: Function without graph breaks.
        name: Name of the function and of its networks, for the warning.
        required: Raise an error in place of the warning.
        **options: Keyword arguments of torch.compile.

    Returns:
        The function to call. It raises ValueError if it is `required` and one graph cannot hold it.
    """
    keep_on_disk()
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_useful)
    options = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True} | options
    compiled, fails = torch.compile(function, **options), False

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal fails
        if not fails:
            try:
                return compiled(*arguments, **keywords)
            except Exception as error:
                reason = _reason_against_graph(error)
                if reason is None:
                    raise
                message = f"torch.compile cannot hold {name} in one graph ({reason})"
                if required:
                    raise ValueError(f"{message}: change the network, or set mode=eager") from error
            # A failure comes before the first operation, so nothing has changed yet.
            warnings.warn(f"{message}: it runs uncompiled; change the network, or set mode=eager", stacklevel=2)
            fails = True
        return function(*arguments, **keywords)

    return call


def _reason_against_graph(error: Exception) -> str | None:
    """Returns why torch.compile cannot trace or differentiate a function, in one line; None for any other error."""
    from torch._dynamo.exc import BackendCompilerFailed, TorchRuntimeError, Unsupported

    if isinstance(error, BackendCompilerFailed):
        inner = error.inner_exception
        return one_line(inner) if isinstance(inner, NotImplementedError) else None
    if isinstance(error, Unsupported | TorchRuntimeError):
        return str(error).strip().partition("\n")[0].rstrip(".:")
    return None


def compile_cache() -> Path:
    """Returns the cache folder of torch.compile: $TORCHINDUCTOR_CACHE_DIR, or a folder that survives a reboot.

    torch's own default in the temporary folder counts as not set.
    """
    chosen = os.environ.get(COMPILE_CACHE_VARIABLE)
    return Path(chosen) if chosen and not _is_default(Path(chosen)) else cache_folder() / "compile"


def damaged_cache(error: Exception) -> str | None:
    """Returns a line about compiled code that cannot be loaded from the cache folder; None for another error."""
    folder, reason = compile_cache(), " ".join(str(error).split())
    if "ImportError" not in reason or str(folder) not in reason:
        return None
    return (
        f"{folder} holds damaged code of torch.compile ({reason.partition(' Set TORCHDYNAMO')[0]}): delete the folder"
    )


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
