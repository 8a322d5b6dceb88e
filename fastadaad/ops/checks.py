"""Argument checks of the public operations.

The checks read shapes, dtypes, devices and numbers, never the values of a tensor: they do not wait for a device and do
not break a torch.compile graph. Each failure is a ValueError that names the argument, its value and the remedy.
"""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_dtype(name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """Raises ValueError unless `tensor` has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise ValueError(f"{name} is {tensor.dtype}: convert it to {' or '.join(map(str, allowed))}")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], why: str) -> None:
    """Raises ValueError unless `tensor` has exactly this shape; `why` ends the message."""
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: it must be {tuple(shape)}, {why}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, {other_name} on {other.device}: move both to one device")


def check_logits(name: str, logits: Tensor) -> None:
    """Raises ValueError unless `logits` is [B, N] with N >= 1, in a dtype of FLOATS."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}: it must be [B, N] with at least one class")
    check_dtype(name, logits, *FLOATS)


def check_not_negative(name: str, number: float) -> None:
    """Raises ValueError unless `number` is finite and at least 0."""
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} is {number}: it must be a finite number >= 0, in pixel units")


def check_range(lower: float, upper: float) -> None:
    """Raises ValueError unless lower <= upper; NaN fails."""
    if not lower <= upper:
        raise ValueError(f"lower is {lower} and upper {upper}: lower must be at most upper")


def check_pixels(x_adv: Tensor, x_natural: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ValueError unless x_adv and x_natural are fp32 [B, ...], `other` is of that shape, all on one device."""
    if x_adv.dim() == 0:
        raise ValueError("x_adv has no dimensions: it must be [B, ...]")
    for name, tensor in (("x_adv", x_adv), ("x_natural", x_natural)):
        if tensor.dtype != torch.float32:
            # bf16 is spaced 1/256 just below 1: half of a step of 2/255.
            raise ValueError(f"{name} is {tensor.dtype}: pixels must be torch.float32, use {name}.float()")
    check_dtype(other_name, other, *FLOATS)
    for name, tensor in (("x_natural", x_natural), (other_name, other)):
        check_shape(name, tensor, x_adv.shape, "that of x_adv")
        check_device(name, tensor, "x_adv", x_adv)


def check_step(
    x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size: float, epsilon: float, lower: float, upper: float
) -> None:
    """Raises ValueError unless the arguments of a projected step are valid."""
    check_pixels(x_adv, x_natural, "grad_x", grad_x)
    check_not_negative("step_size", step_size)
    check_not_negative("epsilon", epsilon)
    check_range(lower, upper)
