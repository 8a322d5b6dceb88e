"""Launches in the static table: every kernel, with the smallest and largest choices of its launcher."""

import torch
from fastadaad.kernels.triton.crop_flip import crop_flip
from fastadaad.kernels.triton.cross_entropy_grad import cross_entropy_grad
from fastadaad.kernels.triton.kl_grad import kl_grad
from fastadaad.kernels.triton.l2_step import l2_step
from fastadaad.kernels.triton.linf_step import linf_step
from fastadaad.kernels.triton.random_start import random_start

from .static import Case

_LOGITS = "student_logits_ptr", "teacher_logits_ptr"
_STEP_LOADS = "x_adv_ptr", "x_natural_ptr", "grad_x_ptr"
_BATCH = 128


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def _kl_grad(num_classes: int, dtype: torch.dtype, passes: int = 1) -> Case:
    logits = _meta(_BATCH, num_classes, dtype=dtype)
    stores = "kl_ptr", "grad_student_logits_ptr", "grad_teacher_logits_ptr"
    return Case(f"N={num_classes} {_short(dtype)}", lambda: kl_grad(logits, logits, 2.0), passes * _LOGITS, stores)


def _cross_entropy_grad(num_classes: int, dtype: torch.dtype, passes: int = 1) -> Case:
    logits, labels = _meta(_BATCH, num_classes, dtype=dtype), _meta(_BATCH, dtype=torch.int64)
    loads = ("labels_ptr",) + passes * _LOGITS[:1]
    stores = "loss_ptr", "grad_student_logits_ptr"
    return Case(f"N={num_classes} {_short(dtype)}", lambda: cross_entropy_grad(logits, labels), loads, stores)


def _step(step, side: int, dtype: torch.dtype, loads: tuple[str, ...] = _STEP_LOADS) -> Case:
    pixels, grad_x = _meta(_BATCH, 3, side, side), _meta(_BATCH, 3, side, side, dtype=dtype)
    name = f"3x{side}x{side} grad {_short(dtype)}"
    return Case(name, lambda: step(pixels, pixels, grad_x, 0.1, 0.2, 0.0, 1.0), loads, ("x_adv_ptr",))


def _random_start(side: int) -> Case:
    pixels = _meta(_BATCH, 3, side, side)
    loads = "x_natural_ptr", "noise_ptr"
    return Case(f"3x{side}x{side}", lambda: random_start(pixels, pixels, pixels, 0.1, 0.0, 1.0), loads, ("x_adv_ptr",))


def _crop_flip(side: int, channels_last: bool = False) -> Case:
    arguments, loads = _crops(side)
    name = f"{side}x{side}x3" + channels_last * " channels-last"
    return Case(name, lambda: crop_flip(*arguments, channels_last=channels_last), loads, ("out_ptr",))


def _crop_flip_cutout(side: int, channels_last: bool = False) -> Case:
    arguments, loads = _crops(side)
    center = _meta(_BATCH, 2, dtype=torch.int64)
    loads += 2 * ("cutout_center_ptr",)
    name = f"{side}x{side}x3" + channels_last * " channels-last"
    return Case(name, lambda: crop_flip(*arguments, side // 2, center, channels_last), loads, ("out_ptr",))


def _crops(side: int) -> tuple[tuple, tuple[str, ...]]:
    """Returns arguments of crop_flip without options, and the pointers that it reads."""
    images, index = _meta(50_000, side, side, 3, dtype=torch.uint8), _meta(_BATCH, dtype=torch.int64)
    flip = _meta(_BATCH, dtype=torch.bool)
    return (images, index, index, index, flip, 4), ("images_ptr", "indices_ptr", "top_ptr", "left_ptr", "flip_ptr")


CASES = (
    _kl_grad(10, torch.float32),
    _kl_grad(100, torch.bfloat16),
    _kl_grad(1_000, torch.float32),
    _kl_grad(8_192, torch.float32),
    _kl_grad(21_843, torch.float32, passes=2),
    _cross_entropy_grad(10, torch.float32),
    _cross_entropy_grad(1_000, torch.float16),
    _cross_entropy_grad(8_192, torch.float32),
    _cross_entropy_grad(21_843, torch.bfloat16, passes=2),
    _step(linf_step, 32, torch.float32),
    _step(linf_step, 32, torch.bfloat16),
    _step(l2_step, 32, torch.float32),
    _step(l2_step, 52, torch.float32),  # 8,112 pixels: the largest block
    _step(l2_step, 224, torch.float32, loads=2 * _STEP_LOADS + ("grad_x_ptr",)),
    _random_start(32),
    _crop_flip(32),
    _crop_flip(32, channels_last=True),
    _crop_flip_cutout(32),
    _crop_flip_cutout(32, channels_last=True),
)
