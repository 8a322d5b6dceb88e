"""Comparison of every fused operation with its reference, on random and extreme inputs."""

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

SEED = 0
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NUM_CLASSES = (1, 10, 257, 1000)
BATCH_SIZES = (1, 37)
PIXEL_SHAPES = ((1, 3, 32, 32), (37, 1, 28, 28), (5, 3, 33, 17), (0, 3, 8, 8))
STEP_SIZE, EPSILON = 2 / 255, 8 / 255

# |output - reference| <= relative |reference| + absolute max(1, largest |reference| of all outputs), by
# the output's dtype. Both compute in fp32, so half precision differs by one rounding of the result.
TOLERANCES = {torch.float32: (5e-5, 5e-6), torch.float16: (2**-10, 5e-6), torch.bfloat16: (2**-7, 5e-6)}


class OpCase(NamedTuple):
    """Arguments of one call of an operation, and a title that describes them."""

    title: str
    arguments: tuple[Any, ...]


def reference(op: str) -> Callable[..., Any]:
    """Returns the reference in plain torch of an operation, by its name in torch.ops.fastadaad."""
    stem = op.removesuffix("_")
    return getattr(importlib.import_module(f"fastadaad.ops.{stem}"), f"{stem}_ref")


def failing_cases(op: str, device: torch.device | str, run: Callable[..., Any] | None = None) -> list[str]:
    """Compares an operation with its reference.

    Args:
        op: Name in torch.ops.fastadaad and in CASES.
        device: Device to run on.
        run: Function to check. Default: the registered operation.

    Returns:
        One line per case with a difference.
    """
    run = run or getattr(torch.ops.fastadaad, op)
    lines = []
    for title, arguments in CASES[op](torch.Generator().manual_seed(SEED)):
        moved = tuple(_to(argument, device) for argument in arguments)
        try:
            outputs, expected = _outcome(op, run, moved), _outcome(op, reference(op), moved)
        except Exception as error:  # a kernel that does not compile or launch may raise anything
            lines.append(f"{title}: {' '.join(str(error).split())[:300]}")
            continue
        # One scale for all outputs: a logit gradient is a difference of numbers as large as kl.
        scale = max(1.0, *(_largest(output) for output in expected))
        wrong = [difference(*pair, scale) for pair in zip(outputs, expected, strict=True)]
        lines += [f"{title}: {where}" for where in wrong if where]
    return lines


def difference(output: Tensor, expected: Tensor, scale: float = 1.0) -> str | None:
    """Describes a difference above TOLERANCES, or in the places of NaN and inf; None if the two agree."""
    if (output.shape, output.dtype) != (expected.shape, expected.dtype):
        return f"{tuple(output.shape)} {output.dtype} instead of {tuple(expected.shape)} {expected.dtype}"
    output, wanted = output.double(), expected.double()
    same = (output == wanted) | (output.isnan() & wanted.isnan())
    relative, absolute = TOLERANCES[expected.dtype]
    error = (output - wanted).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf)
    excess = error / (relative * wanted.abs().nan_to_num(nan=1.0, posinf=1.0) + absolute * scale)
    if not excess.numel() or excess.max() <= 1:
        return None
    index = int(excess.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(index), excess.shape)]
    wrong = int((excess > 1).sum())
    return (
        f"{output.flatten()[index]:.7g} instead of {wanted.flatten()[index]:.7g} at {place}, "
        f"max error {error.max():.3g}, {wrong} of {excess.numel()} values wrong"
    )


def _largest(x: Tensor) -> float:
    """Largest finite magnitude."""
    finite = x[x.isfinite()]
    return finite.abs().max().item() if len(finite) else 0.0


def _outcome(op: str, run: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Returns the outputs of a call on copies of the arguments; of an in-place operation, its first argument."""
    arguments = copy.deepcopy(arguments)  # unlike clone, keeps the strides
    result = run(*arguments)
    if op.endswith("_"):
        return (arguments[0],)
    return result if isinstance(result, tuple) else (result,)


def _to(argument: Any, device: torch.device | str) -> Any:
    """Moves a tensor to the device with its strides; returns other arguments unchanged."""
    if not isinstance(argument, Tensor):
        return argument
    moved = torch.empty_strided(argument.shape, argument.stride(), dtype=argument.dtype, device=device)
    return moved.copy_(argument)


def _transposed(x: Tensor) -> Tensor:
    return x.t().contiguous().t()


def _spread(x: Tensor) -> Tensor:
    """Returns x with gaps between the elements of the last dimension."""
    return torch.stack((x, x), dim=-1)[..., 0]


def _with(x: Tensor, index: tuple[int, ...], value: float) -> Tensor:
    """Returns a copy of x with this value at the index."""
    x = x.clone()
    x[index] = value
    return x


def _logits(generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yields title, student_logits and teacher_logits [B, N]."""

    def draw(batch: int, classes: int) -> tuple[Tensor, Tensor]:
        return 3 * torch.randn(batch, classes, generator=generator), 3 * torch.randn(
            batch, classes, generator=generator
        )

    for dtype in DTYPES:
        for classes in NUM_CLASSES:
            for batch in BATCH_SIZES:
                student, teacher = draw(batch, classes)
                yield f"random [{batch}, {classes}] {dtype}", student.to(dtype), teacher.to(dtype)
            # Each class is among the likeliest in some row, so that no error hides behind a small probability.
            peaks = 4.0 * (torch.arange(37)[:, None] == torch.arange(classes) % 37)
            yield f"every class in turn [37, {classes}] {dtype}", peaks.to(dtype), peaks.roll(1, dims=0).to(dtype)
        student, teacher = (logits.to(dtype) for logits in draw(37, 257))
        yield f"large {dtype}", 1e4 * student.sign(), 1e4 * teacher.sign()
        yield f"opposite {dtype}", 10 * student, -10 * student
        yield f"equal {dtype}", student, student.clone()
        yield f"constant {dtype}", torch.full_like(student, 1e4), torch.full_like(student, -1e4)
        yield f"transposed {dtype}", _transposed(student), _transposed(teacher)
        yield f"with gaps {dtype}", _spread(student), _spread(teacher)
        masked = torch.arange(257) % 3 == 1
        fewer, teacher_of_fewer = student.masked_fill(masked, -torch.inf), teacher.masked_fill(masked, -torch.inf)
        yield f"classes masked in both {dtype}", fewer, teacher_of_fewer
        yield f"classes masked by the teacher {dtype}", student, teacher_of_fewer
        yield f"class 4 masked by the student in sample 3 {dtype}", _with(student, (3, 4), -torch.inf), teacher
        yield f"NaN in sample 5 of student_logits {dtype}", _with(student, (5, -1), torch.nan), teacher
        yield f"NaN in sample 5 of teacher_logits {dtype}", student, _with(teacher, (5, -1), torch.nan)


def _kl_grad(generator: torch.Generator) -> Iterator[OpCase]:
    for title, student_logits, teacher_logits in _logits(generator):
        yield OpCase(title, (student_logits, teacher_logits, 1.0))
    for temperature in (0.5, 4.0):
        student_logits, teacher_logits = torch.randn(2, 37, 100, generator=generator)
        yield OpCase(f"temperature {temperature}", (student_logits, teacher_logits, temperature))
    student_logits, teacher_logits = torch.randn(2, 37, 100, generator=generator)
    yield OpCase("dtypes that differ", (student_logits, teacher_logits.bfloat16(), 1.0))


def _cross_entropy_grad(generator: torch.Generator) -> Iterator[OpCase]:
    for title, student_logits, _ in _logits(generator):
        labels = torch.arange(len(student_logits)) % student_logits.shape[1]
        yield OpCase(title, (student_logits, labels))
        yield OpCase(f"{title}, labels from the last", (student_logits, student_logits.shape[1] - 1 - labels))


def _pixels(generator: torch.Generator) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yields title, x_adv, x_natural and a third tensor with zeros, each [B, C, H, W]; many pixels are 0 or 1."""

    def draw(shape: tuple[int, ...]) -> list[Tensor]:
        x_natural = (1.4 * torch.rand(shape, generator=generator) - 0.2).clamp(0, 1)
        x_adv = x_natural + EPSILON * (2.4 * torch.rand(shape, generator=generator) - 1.2)
        third = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.2)
        return [x_adv, x_natural, third]

    for shape in PIXEL_SHAPES:
        for dtype in DTYPES:
            x_adv, x_natural, third = draw(shape)
            yield f"random {list(shape)} {dtype}", x_adv, x_natural, third.to(dtype)
    x_adv, x_natural, third = draw((5, 3, 33, 17))
    layouts = {
        "channels-last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "with gaps": _spread,
    }
    for name, layout in layouts.items():
        yield f"{name}", layout(x_adv), layout(x_natural), layout(third)
        yield f"third tensor {name}", x_adv, x_natural, layout(third)
    yield "third tensor zero", x_adv, x_natural, torch.zeros_like(third)
    yield "third tensor tiny", x_adv, x_natural, 1e-30 * third
    yield "third tensor large", x_adv, x_natural, 1e6 * third
    yield "NaN in sample 2 of x_adv", _with(x_adv, (2, -1, 7, 3), torch.nan), x_natural, third
    yield "NaN in sample 2 of x_natural", x_adv, _with(x_natural, (2, -1, 7, 3), torch.nan), third
    yield "NaN in sample 2 of the third tensor", x_adv, x_natural, _with(third, (2, -1, 7, 3), torch.nan)


def _linf_step(generator: torch.Generator) -> Iterator[OpCase]:
    for title, *tensors in _pixels(generator):
        yield OpCase(title, (*tensors, STEP_SIZE, EPSILON, 0.0, 1.0))
    yield OpCase("other borders", (*tensors, STEP_SIZE, EPSILON, 0.25, 0.75))


def _l2_step(generator: torch.Generator) -> Iterator[OpCase]:
    for title, *tensors in _pixels(generator):
        for epsilon in (0.5, 5.0):  # outside the ball, and inside
            yield OpCase(f"{title}, epsilon {epsilon}", (*tensors, 0.25, epsilon, 0.0, 1.0))


def _random_start(generator: torch.Generator) -> Iterator[OpCase]:
    for title, *tensors in _pixels(generator):
        yield OpCase(title, (*tensors, EPSILON, 0.0, 1.0))
        yield OpCase(f"{title}, not clamped", (*tensors, 0.001, -math.inf, math.inf))


def _crop_flip(generator: torch.Generator) -> Iterator[OpCase]:
    def draw(num_images: int, height: int, width: int, channels: int, padding: int) -> tuple[Any, ...]:
        images = torch.randint(256, (num_images, height, width, channels), dtype=torch.uint8, generator=generator)
        indices = torch.randint(num_images, (9,), generator=generator)
        top, left = torch.randint(2 * padding + 1, (2, 9), generator=generator)
        return images, indices, top, left, torch.rand(9, generator=generator) < 0.5, padding

    for sizes in ((11, 32, 32, 3, 4), (1, 28, 28, 1, 2), (7, 9, 5, 3, 3), (5, 8, 8, 4, 0)):
        yield OpCase(f"images {list(sizes[:4])}, padding {sizes[4]}", draw(*sizes))
    images, *rest = draw(7, 9, 5, 3, 3)
    planes = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    yield OpCase("images stored as planes", (planes, *rest))
    yield OpCase("channels-last", (images, *rest, 0, None, True))
    center = torch.stack((torch.arange(9), torch.arange(9) % 5), dim=1)
    for cutout in (1, 4, 5):
        yield OpCase(f"cutout {cutout}", (images, *rest, cutout, center))
        yield OpCase(f"cutout {cutout}, channels-last", (images, *rest, cutout, center, True))


# Name in torch.ops.fastadaad -> function that draws its cases.
CASES: dict[str, Callable[[torch.Generator], Iterator[OpCase]]] = {
    "kl_grad": _kl_grad,
    "cross_entropy_grad": _cross_entropy_grad,
    "linf_step_": _linf_step,
    "l2_step_": _l2_step,
    "random_start_": _random_start,
    "crop_flip": _crop_flip,
}
