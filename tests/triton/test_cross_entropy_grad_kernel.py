"""cross_entropy_grad's Triton kernels against float64 autograd, and against the reference for special values."""

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LOOPED, SIZES, assert_accurate
from fastadaad.kernels.triton.cross_entropy_grad import cross_entropy_grad
from torch import Tensor

from fastadaad.ops.cross_entropy_grad import cross_entropy_grad_ref


def _batch(num_rows: int, num_classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_classes)
    student_logits = 3 * torch.randn(num_rows, num_classes, generator=generator)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    labels[-1:] = num_classes - 1
    return student_logits.to(device), labels.to(device)


def _assert_accurate(student_logits: Tensor, labels: Tensor) -> None:
    leaf = student_logits.double().requires_grad_()
    loss = F.cross_entropy(leaf, labels, reduction="none")
    in_double = loss.detach(), *torch.autograd.grad(loss.sum(), leaf)
    in_torch = cross_entropy_grad_ref(student_logits, labels)
    for output, torch_output, double in zip(
        cross_entropy_grad(student_logits, labels), in_torch, in_double, strict=True
    ):
        assert output.is_contiguous()
        assert_accurate(output, torch_output, double)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_as_accurate_as_torch(num_rows: int, num_classes: int, dtype: torch.dtype, device: torch.device):
    student_logits, labels = _batch(num_rows, num_classes, device)
    _assert_accurate(student_logits.to(dtype), labels)


def test_no_rows(device: torch.device):
    loss, grad_student_logits = cross_entropy_grad(*_batch(0, 10, device))
    assert (tuple(loss.shape), tuple(grad_student_logits.shape)) == ((0,), (0, 10))


@pytest.mark.parametrize("num_classes", [10, LOOPED])
@pytest.mark.parametrize("scale", [0.0, 1e4], ids=["equal", "huge"])
def test_extreme_logits(num_classes: int, scale: float, device: torch.device):
    student_logits, labels = _batch(3, num_classes, device)
    _assert_accurate(scale * student_logits.sign() - 1e4, labels)


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_masked_classes(num_classes: int, device: torch.device):
    """Masks, per row: other classes, the label, all classes but the label."""
    student_logits, labels = _batch(3, num_classes, device)
    labels[:] = num_classes - 2
    student_logits[0, :3] = student_logits[1, -2] = -torch.inf
    student_logits[2, : num_classes - 2] = student_logits[2, num_classes - 1] = -torch.inf
    loss, grad_student_logits = cross_entropy_grad(student_logits, labels)
    expected_loss, expected_grad = cross_entropy_grad_ref(student_logits, labels)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad_student_logits, expected_grad, rtol=1e-5, atol=1e-6)
    assert loss[1:].tolist() == [torch.inf, 0.0]
    assert grad_student_logits[0, :3].eq(0).all()
    assert grad_student_logits[2].eq(0).all()


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_nan_stays_in_its_row(num_classes: int, device: torch.device):
    student_logits, labels = _batch(3, num_classes, device)
    clean = cross_entropy_grad(student_logits, labels)
    student_logits[1, num_classes - 1] = torch.nan
    outputs = cross_entropy_grad(student_logits, labels)
    for output, expected in zip(outputs, clean, strict=True):
        assert torch.equal(output[[0, 2]], expected[[0, 2]])
        assert output[1].isnan().all()


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_any_strides(num_classes: int, device: torch.device):
    student_logits, labels = _batch(4, num_classes, device)
    expected = cross_entropy_grad(student_logits, labels)
    sliced = torch.zeros(8, 2 * num_classes + 3, device=device)[1::2, 3::2].copy_(student_logits)
    spread_labels = labels.repeat_interleave(3)[::3]
    for logits in (sliced, student_logits.T.contiguous().T):
        for output, reference in zip(cross_entropy_grad(logits, spread_labels), expected, strict=True):
            assert torch.equal(output, reference)
