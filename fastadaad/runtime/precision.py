"""Arithmetic of the networks: auto, fp32, TF32, bf16, fp16."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from fastadaad.config import Precision, PrecisionConfig

DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Precision `auto` on CUDA devices with tensor cores for bf16 and TF32. fp32 runs without them, which is far slower: the
# data sheet of an A100 has 19.5 TFLOP/s in fp32, 156 in TF32 and 312 in bf16.
AUTO_ON_TENSOR_CORES: Precision = "bf16"
TENSOR_CORES_SINCE = (8, 0)  # compute capability

STRICT_FP32 = PrecisionConfig(student="fp32", teacher="fp32")

# Scale of the logit gradients in the inner loop if a network is in fp16: without it most gradients in the first layers
# are below 6e-8, the smallest fp16 number. The step follows the direction of the pixel gradient; no scale changes it.
FP16_GRADIENT_SCALE = 1024.0


def resolved(
    precision: PrecisionConfig,
    device: torch.device,
    *,
    on_tensor_cores: Precision = AUTO_ON_TENSOR_CORES,
    student_folds: bool = True,
    teacher_folds: bool = True,
) -> PrecisionConfig:
    """Replaces `auto` by the precision for this device: `on_tensor_cores`, or fp32 on a device without tensor cores.

    Args:
        precision: Setting of both networks.
        device: Device of the networks.
        on_tensor_cores: Precision of `auto` on CUDA devices with tensor cores.
        student_folds: The search runs on a folded copy of the student. Otherwise `auto` is tf32 on tensor cores, as
            only a folded copy can be in bf16 or fp16.
        teacher_folds: The same of the teacher.

    Raises:
        ValueError: tf32 on a device other than CUDA, which would compute in fp32 under another name.
    """

    def concrete(setting: Precision, folds: bool) -> Precision:
        if setting == "tf32" and device.type != "cuda":
            raise ValueError(f"precision tf32 exists on CUDA devices only, not on {device.type}: choose fp32 or auto")
        if setting != "auto":
            return setting
        if not _has_tensor_cores(device):
            return "fp32"
        return on_tensor_cores if folds else "tf32"

    return replace(
        precision,
        student=concrete(precision.student, student_folds),
        teacher=concrete(precision.teacher, teacher_folds),
    )


def _has_tensor_cores(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES_SINCE


def is_low(precision: Precision) -> bool:
    """Returns True for bf16 and fp16, in which only a folded copy can run."""
    return DTYPES[precision] != torch.float32


def uses_tf32(precision: PrecisionConfig) -> bool:
    """Returns True if torch's switches allow TF32 while the networks run; there is one switch for both networks.

    The first convolutions of networks in bf16 and fp16 are in TF32 too: its numbers in [0.5, 1) are 1/2048 apart, and
    as many gradient signs are fp32's as with first convolutions in fp32 (bench/results/stems.csv). Beside a network in
    fp32, which is strict, they stay in fp32.
    """
    pair = (precision.student, precision.teacher)
    return "tf32" in pair or "fp32" not in pair


def description(precision: PrecisionConfig, device: torch.device, *, has_teacher: bool = True) -> str:
    """Describes the precision in force in one phrase, such as `student bf16, teacher fp32 (first convolutions fp32)`.

    Args:
        precision: Precision of both networks, without `auto`.
        device: Device of the networks.
        has_teacher: The method needs a teacher.
    """
    names = {"student": precision.student} | ({"teacher": precision.teacher} if has_teacher else {})
    text = ", ".join(f"{network} {name}" for network, name in names.items())
    if not any(map(is_low, names.values())):
        return text
    return f"{text} (first convolutions {'TF32' if device.type == 'cuda' and uses_tf32(precision) else 'fp32'})"


def gradient_scale(precision: PrecisionConfig) -> float:
    """Returns the factor of the logit gradients in the inner loop."""
    return FP16_GRADIENT_SCALE if "fp16" in (precision.student, precision.teacher) else 1.0


def fp32_switches() -> tuple[str, ...]:
    """Returns torch's switches for fp32 on CUDA: of matrix products, convolutions and recurrent layers."""
    backends: Any = torch.backends
    switches = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    return tuple(switch.fp32_precision for switch in switches)


@contextmanager
def tensor_cores(precision: PrecisionConfig, device: torch.device) -> Iterator[None]:
    """Computes fp32 convolutions and matrix products on CUDA in TF32 if uses_tf32(precision), else in fp32.

    torch has one switch for both networks; its own default is TF32 for convolutions alone. The switches are restored
    after the context.

    Args:
        precision: Precision of both networks, without `auto`.
        device: Device of the networks; on devices other than CUDA nothing changes.
    """
    if device.type != "cuda":
        yield
        return
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    switches, before = (matmul, cudnn.conv, cudnn.rnn), fp32_switches()
    # allow_tf32 is torch's older name of the switch. Writing it sets both names, which must agree when torch reads it.
    # It cannot be read if the user has set the newer name alone.
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = uses_tf32(precision)
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[0] == "tf32", before[1] == "tf32"
        for switch, fp32_precision in zip(switches, before, strict=True):
            switch.fp32_precision = fp32_precision
