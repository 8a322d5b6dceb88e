"""Arithmetic of the networks: fp32, TF32, bf16, fp16."""

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

# Scale of the logit gradients in the inner loop if a network is in fp16: without it most gradients in the first layers
# are below 6e-8, the smallest fp16 number. The step follows the direction of the pixel gradient; no scale changes it.
FP16_GRADIENT_SCALE = 1024.0


def gradient_scale(precision: PrecisionConfig) -> float:
    """Returns the factor of the logit gradients in the inner loop."""
    return FP16_GRADIENT_SCALE if "fp16" in (precision.student, precision.teacher) else 1.0


@contextmanager
def tensor_cores(precision: PrecisionConfig, device: torch.device) -> Iterator[None]:
    """Computes fp32 convolutions and matrix products on CUDA in TF32 if either network is in tf32, else in fp32.

    torch has one switch for both networks; its own default is TF32 for convolutions alone. The switches are restored
    after the context.

    Args:
        precision: Precision of both networks.
        device: Device of the networks; on devices other than CUDA nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches = (matmul, cudnn.conv, cudnn.rnn)
    before = [switch.fp32_precision for switch in switches]
    # allow_tf32 is torch's older name of the switch. Writing it sets both names, which must agree when torch reads it.
    # It cannot be read if the user has set the newer name alone.
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = "tf32" in (precision.student, precision.teacher)
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[0] == "tf32", before[1] == "tf32"
        for switch, fp32_precision in zip(switches, before, strict=True):
            switch.fp32_precision = fp32_precision
