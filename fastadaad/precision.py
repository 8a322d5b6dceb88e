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
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = "tf32" in (precision.student, precision.teacher)
        yield
    finally:
        for switch, allowed in zip(switches, before, strict=True):
            switch.allow_tf32 = allowed
