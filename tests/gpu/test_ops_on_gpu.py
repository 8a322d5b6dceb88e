"""Public operations on a CUDA device against their references."""

import os

import pytest
import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.ops.crop_flip import crop_flip_ref
from fastadaad.ops.cross_entropy_grad import cross_entropy_grad_ref
from fastadaad.ops.kl_grad import kl_grad_ref
from fastadaad.ops.l2_step import l2_step_ref
from fastadaad.ops.linf_step import linf_step_ref
from fastadaad.ops.random_start import random_start_ref

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NUM_SAMPLES = 17 if "PRETEND_GPU" in os.environ else 129  # Triton's interpreter takes a second for ten images
SIZES = [(129, 10), (37, 257), (4, 21_843)]
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # one unit in the last place, relative


def _normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to("cuda", dtype)


def _assert_close(outputs: tuple[Tensor, ...], references: tuple[Tensor, ...]) -> None:
    for output, reference in zip(outputs, references, strict=True):
        torch.testing.assert_close(output, reference, rtol=ROUNDING[output.dtype], atol=2e-6)


def test_triton_runs_every_operation():
    assert {row.backend for row in ops.report() if row.device == "cuda"} == {"triton"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_kl_grad(num_rows: int, num_classes: int, dtype: torch.dtype):
    student_logits, teacher_logits = 3 * _normal(2, num_rows, num_classes, dtype=dtype)
    _assert_close(ops.kl_grad(student_logits, teacher_logits, 2.0), kl_grad_ref(student_logits, teacher_logits, 2.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_cross_entropy_grad(num_rows: int, num_classes: int, dtype: torch.dtype):
    student_logits = 3 * _normal(num_rows, num_classes, dtype=dtype)
    labels = torch.arange(num_rows, device="cuda") % num_classes
    _assert_close(ops.cross_entropy_grad(student_logits, labels), cross_entropy_grad_ref(student_logits, labels))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_linf_step_and_random_start_equal_torch_bitwise(layout: torch.memory_format, dtype: torch.dtype):
    x_natural = _normal(37, 3, 15, 17).sigmoid().contiguous(memory_format=layout)
    third = _normal(37, 3, 15, 17, dtype=dtype)
    for step, reference, scalars in (
        (ops.random_start_, random_start_ref, (8 / 255, 0.0, 1.0)),
        (ops.linf_step_, linf_step_ref, (2 / 255, 8 / 255, 0.0, 1.0)),
    ):
        x_adv, expected = x_natural.clone(), x_natural.clone()
        assert step(x_adv, x_natural, third, *scalars) is x_adv
        reference(expected, x_natural, third, *scalars)
        assert torch.equal(x_adv, expected)


@pytest.mark.parametrize("side", [32, 64], ids=["resident", "looped"])
def test_l2_step(side: int):
    x_natural = _normal(9, 3, side, side).sigmoid()
    x_adv, expected = (0.9 * x_natural).clone(), (0.9 * x_natural).clone()
    ops.l2_step_(x_adv, x_natural, _normal(9, 3, side, side), 0.5, 1.0)
    l2_step_ref(expected, x_natural, _normal(9, 3, side, side), 0.5, 1.0, 0.0, 1.0)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("cutout", [0, 15, 16])
def test_crop_flip(cutout: int, channels_last: bool):
    """Compares with the reference on the CPU: on CUDA torch multiplies by the rounded inverse of 255."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (11, 32, 32, 3), dtype=torch.uint8, generator=generator)
    indices = torch.randint(11, (NUM_SAMPLES,), generator=generator)
    top, left = torch.randint(9, (2, NUM_SAMPLES), generator=generator)
    arguments = images, indices, top, left, top > left
    center = torch.randint(32, (NUM_SAMPLES, 2), generator=generator) if cutout else None
    options = {"cutout": cutout, "channels_last": channels_last}
    expected = crop_flip_ref(*arguments, 4, cutout_center=center, **options)
    on_device = [x.cuda() for x in arguments]
    result = ops.crop_flip(*on_device, 4, cutout_center=None if center is None else center.cuda(), **options)
    assert torch.equal(result.cpu(), expected)
    assert result.stride() == expected.stride()


def test_linf_step_can_be_captured_in_a_cuda_graph():
    """Compares replays with eager steps; a host sync would fail, and a new allocation would be missed by a replay."""
    x_natural, grad_x = _normal(8, 3, 32, 32).sigmoid(), _normal(8, 3, 32, 32)
    x_adv, expected = x_natural.clone(), x_natural.clone()
    ops.linf_step_(x_adv.clone(), x_natural, grad_x, 2 / 255, 8 / 255)  # compiles before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.linf_step_(x_adv, x_natural, grad_x, 2 / 255, 8 / 255)
    for _ in range(3):
        graph.replay()
        linf_step_ref(expected, x_natural, grad_x, 2 / 255, 8 / 255, 0.0, 1.0)
    assert torch.equal(x_adv, expected)
