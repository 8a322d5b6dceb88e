"""Runs a benchmark of generated code on a pretend GPU: torch's CUDA build on a stub of the CUDA runtime.

Allocations and compilation are torch's own. Kernels do nothing, and convolutions only allocate their outputs: values
are meaningless, and large networks take no time.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from fastadaad.inner import folding
from fastadaad.runtime import epilogues

CAPABILITY = "PRETEND_GPU_CAPABILITY"


def why_not() -> str | None:
    """Returns the reason if this machine cannot pretend a GPU, in one line."""
    from pretend_gpu import build

    return build.why_not()


def run_benchmark(arguments: Sequence[str], capability: int) -> None:
    """Runs `python -m bench` with these arguments in a process with a pretend GPU.

    Args:
        arguments: Name of the benchmark and its options.
        capability: Compute capability times ten.

    Raises:
        RuntimeError: The stub runtime cannot be built.
        subprocess.CalledProcessError: The benchmark fails.
    """
    from pretend_gpu import build

    library = build.build()
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "TRITON_INTERPRET": "0",
        CAPABILITY: str(capability),
    }
    subprocess.run([sys.executable, "-m", "bench", *arguments], env=environment, check=True)


def is_pretended() -> bool:
    return CAPABILITY in os.environ


@contextmanager
def without_values() -> Iterator[None]:
    """Lets kernels do nothing and convolutions only allocate, and leaves out the checks of folded copies."""
    ctypes.CDLL(None).pretend_gpu_fail_at_kernels(0)
    library = torch.library.Library("aten", "IMPL")
    for name, stand_in in STAND_INS.items():
        library.impl(name, stand_in, "CUDA", allow_override=True)
    equal = {
        name: mock.patch.object(folding, name, return_value=None) for name in ("_difference", "_difference_in_float64")
    }
    fused = mock.patch.object(epilogues, "worth_fusing", return_value=True)
    with fused, equal["_difference"], equal["_difference_in_float64"]:
        try:
            yield
        finally:
            library._destroy()


def _convolution(
    x: Tensor, weight: Tensor, padding: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *_: object
) -> Tensor:
    """Allocates the output in the layout that cuDNN would choose."""
    memory_format = torch._C._conv_determine_backend_memory_format(x, weight, torch._C._ConvBackend.Cudnn)
    sizes = [
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, kernel, pad, step, spread in zip(
            x.shape[2:], weight.shape[2:], padding, stride, dilation, strict=True
        )
    ]
    return x.new_empty(len(x), len(weight), *sizes).contiguous(memory_format=memory_format)


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, *arguments: object) -> tuple[Tensor | None, ...]:
    """Allocates the wanted gradients, those of images and weights in the layout that cuDNN would choose."""
    of_input, of_weight, of_bias = arguments[-1]
    layout = torch._C._conv_determine_backend_memory_format(x, weight, torch._C._ConvBackend.Cudnn)
    return (
        torch.empty_like(x, memory_format=layout) if of_input else None,
        torch.empty_like(weight, memory_format=layout) if of_weight else None,
        weight.new_empty(len(weight)) if of_bias else None,
    )


def _batch_norm(x: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), x.new_empty(0, dtype=torch.uint8)


def _batch_norm_backward(x: Tensor, grad: Tensor, weight: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


STAND_INS = {
    "cudnn_convolution": _convolution,
    "cudnn_convolution_relu": lambda x, weight, bias, stride, padding, dilation, groups: _convolution(
        x, weight, padding, stride, dilation
    ),
    "cudnn_convolution_add_relu": lambda x, weight, other, alpha, bias, stride, padding, dilation, groups: _convolution(
        x, weight, padding, stride, dilation
    ),
    "convolution_backward": _convolution_backward,
    "_conv_depthwise2d": lambda x, weight, kernel, bias, stride, padding, dilation: _convolution(
        x, weight, padding, stride, dilation
    ),
    "bmm": lambda a, b: a.new_empty(len(a), a.shape[1], b.shape[2]),
    "bmm.out": lambda a, b, *, out: out,
    "mm": lambda a, b: a.new_empty(len(a), b.shape[1]),
    "mm.out": lambda a, b, *, out: out,
    "addmm": lambda bias, a, b, **_: a.new_empty(len(a), b.shape[1]),
    "addmm.out": lambda bias, a, b, *, out, **_: out,
    "cudnn_batch_norm": _batch_norm,
    "cudnn_batch_norm_backward": _batch_norm_backward,
}
