"""The arithmetic of the networks: fp32, TF32, bf16, fp16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fastadaad.config import Precision, PrecisionConfig

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Of the logits' gradients in the inner loop, where a network is fp16: without it most of what reaches the first layers
# is below 6e-8, the smallest fp16 number. The step takes the direction of the pixel gradient, which no scale changes.
FP16_GRADIENT_SCALE = 1024.0


def gradient_scale(precision: PrecisionConfig) -> float:
    """What the gradients of the logits are multiplied by in the inner loop."""
    return FP16_GRADIENT_SCALE if "fp16" in (precision.student, precision.teacher) else 1.0


@contextmanager
def tensor_cores(precision: PrecisionConfig, device: torch.device) -> Iterator[None]:
    """fp32 convolutions and matrix products on CUDA inside: in TF32 where either network asks for it, else in fp32.

    torch has one switch for all; its own default is TF32 for convolutions alone.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches = (matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    # allow_tf32 is torch's older name for the same. Writing it sets both, which must agree wherever torch reads it; it
    # cannot be read where the user has set the newer one alone.
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = "tf32" in (precision.student, precision.teacher)
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[0] == "tf32", before[1] == "tf32"
        for switch, fp32_precision in zip(switches, before, strict=True):
            switch.fp32_precision = fp32_precision
