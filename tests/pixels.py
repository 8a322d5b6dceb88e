"""Pixels in many memory layouts, and tests that the two projected steps share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2))[..., 1:-2],
    "batch_innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


def draw(*shape: int, epsilon: float = 0.1) -> tuple[Tensor, Tensor, Tensor]:
    """Draws x_adv, mostly inside the ball, x_natural in [0, 1], and grad_x with some zeros."""
    generator = torch.Generator().manual_seed(sum(shape))
    x_natural = torch.rand(shape, generator=generator)
    x_adv = x_natural + epsilon * (2.2 * torch.rand(shape, generator=generator) - 1.1)
    grad_x = torch.randn(shape, generator=generator)
    return x_adv, x_natural, grad_x * (torch.rand(shape, generator=generator) > 0.1)


def assert_layouts_agree(run: Callable, op: str, *numbers: float, close: Callable[[Tensor, Tensor], None]) -> None:
    """Asserts that layouts do not change the result, x_adv keeps its layout, and neighbours are not touched."""
    x_adv, x_natural, other = draw(5, 3, 6, 7)
    expected = x_adv.clone()
    run(op, expected, x_natural, other, *numbers)
    for adv_layout in LAYOUTS.values():
        for other_layout in LAYOUTS.values():
            work = adv_layout(x_adv.clone())
            strides = work.stride()
            run(op, work, other_layout(x_natural), other_layout(other), *numbers)
            close(work, expected)
            assert work.stride() == strides
    frame = torch.full((5, 3, 6, 9), 7.0)
    frame[..., 1:-1] = x_adv
    run(op, frame[..., 1:-1], x_natural, other, *numbers)
    close(frame[..., 1:-1], expected)
    assert (frame[..., [0, -1]] == 7.0).all()


# Changes to good arguments of a step, and the message that each must raise.
wrong_step_arguments = pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_adv": torch.tensor(0.5)}, r"x_adv has no dimensions"),
        ({"x_adv": torch.zeros(2, 3).bfloat16()}, r"x_adv is torch.bfloat16: pixels must be torch.float32, use x_adv"),
        ({"x_natural": torch.zeros(2, 3).half()}, r"x_natural is torch.float16: pixels must be torch.float32"),
        ({"x_natural": torch.zeros(1, 3)}, r"x_natural has shape \(1, 3\): it must be \(2, 3\), that of x_adv"),
        ({"grad_x": torch.zeros(2, 4)}, r"grad_x has shape \(2, 4\): it must be \(2, 3\)"),
        ({"grad_x": torch.zeros(2, 3).double()}, r"grad_x is torch.float64: convert it to"),
        ({"grad_x": torch.zeros(2, 3, device="meta")}, r"grad_x is on meta, x_adv on cpu: move both"),
        ({"step_size": -0.1}, r"step_size is -0.1: it must be a finite number >= 0"),
        ({"epsilon": -0.1}, r"epsilon is -0.1: it must be a finite number >= 0"),
        ({"epsilon": float("nan")}, r"epsilon is nan: it must be"),
        ({"step_size": float("inf")}, r"step_size is inf: it must be"),
        ({"lower": 1.0, "upper": 0.0}, r"lower is 1.0 and upper 0.0: lower must be at most upper"),
    ],
)


def good_step_arguments() -> dict:
    """Returns arguments that every step accepts."""
    tensors = {name: torch.zeros(2, 3) for name in ("x_adv", "x_natural", "grad_x")}
    return tensors | {"step_size": 0.1, "epsilon": 0.1}
