"""kl_grad's Triton kernels against float64 autograd, and against the reference for special values."""

import pytest
import torch
from cases import DTYPES, LOOPED, SIZES, assert_accurate
from fastadaad.kernels.triton.kl_grad import kl_grad
from torch import Tensor

from fastadaad.ops.kl_grad import kl_grad_ref

NAMES = "kl", "grad_student_logits", "grad_teacher_logits"


def _logits(num_rows: int, num_classes: int, device: torch.device, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num_rows + num_classes)
    logits = 3 * torch.randn(2, num_rows, num_classes, generator=generator)
    return tuple(logits.to(device, dtype))


def _double(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Returns kl and both gradients by float64 autograd."""
    leaves = [logits.double().requires_grad_() for logits in (student_logits, teacher_logits)]
    student_log_probs, teacher_log_probs = (torch.log_softmax(leaf / temperature, dim=1) for leaf in leaves)
    kl = (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum(dim=1)
    return kl.detach(), *torch.autograd.grad(kl.sum(), leaves)


def _assert_accurate(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    outputs = kl_grad(student_logits, teacher_logits, temperature)
    in_torch = kl_grad_ref(student_logits, teacher_logits, temperature)
    in_double = _double(student_logits, teacher_logits, temperature)
    for output, torch_output, double in zip(outputs, in_torch, in_double, strict=True):
        assert output.is_contiguous()
        assert_accurate(output, torch_output, double)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "num_classes"), SIZES)
def test_as_accurate_as_torch(num_rows: int, num_classes: int, dtype: torch.dtype, device: torch.device):
    _assert_accurate(*_logits(num_rows, num_classes, device, dtype), temperature=1.7)


def test_no_rows(device: torch.device):
    shapes = [tuple(output.shape) for output in kl_grad(*_logits(0, 10, device), 1.0)]
    assert shapes == [(0,), (0, 10), (0, 10)]


def test_each_gradient_has_the_dtype_of_its_logits(device: torch.device):
    student_logits, teacher_logits = _logits(5, 10, device)
    _assert_accurate(student_logits.bfloat16(), teacher_logits, temperature=1.0)


@pytest.mark.parametrize("num_classes", [10, LOOPED])
@pytest.mark.parametrize("scale", [0.0, 1e4], ids=["equal", "huge"])
def test_extreme_logits(num_classes: int, scale: float, device: torch.device):
    student_logits, teacher_logits = _logits(3, num_classes, device)
    _assert_accurate(scale * student_logits.sign(), scale * teacher_logits.sign() + 1e4, temperature=1.0)


def test_peak_that_rises_by_thousands_in_a_later_block(device: torch.device):
    """The online sums must follow the peaks: the student's peak rises first, then the teacher's."""
    student_logits, teacher_logits = _logits(2, LOOPED, device)
    student_logits[:, 4_096:] += 5e3
    teacher_logits[:, 8_192:] += 5e3
    teacher_logits[1, 5_000] += 5e3
    _assert_accurate(student_logits, teacher_logits, temperature=0.5)


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_masked_classes(num_classes: int, device: torch.device):
    """Masks, per row: student only, teacher only, both, both for nearly all classes, none."""
    student_logits, teacher_logits = _logits(5, num_classes, device)
    student_logits[0, 1:4] = student_logits[2, 2:5] = student_logits[3, :-2] = -torch.inf
    teacher_logits[1, 1:4] = teacher_logits[2, 2:5] = teacher_logits[3, :-2] = -torch.inf
    outputs = kl_grad(student_logits, teacher_logits, 2.0)
    for name, output, reference in zip(NAMES, outputs, kl_grad_ref(student_logits, teacher_logits, 2.0), strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-5, atol=2e-6, msg=lambda text: f"{name}: {text}")  # noqa: B023
    kl, grad_student_logits, grad_teacher_logits = outputs
    assert torch.isinf(kl).tolist() == [True, False, False, False, False]
    assert not torch.isnan(grad_teacher_logits).any()
    assert grad_student_logits[2, 2:5].eq(0).all()
    assert grad_teacher_logits[1, 1:4].eq(0).all()


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_lowest_finite_logit_masks_like_infinity(num_classes: int, device: torch.device):
    """A temperature below 1 makes the logit overflow to -inf."""
    logits = torch.stack(_logits(2, num_classes, device))
    masked, lowest = logits.clone(), logits.clone()
    masked[:, :, :4], lowest[:, :, :4] = -torch.inf, torch.finfo(torch.float32).min
    for output, expected in zip(kl_grad(*lowest, 0.5), kl_grad(*masked, 0.5), strict=True):
        assert torch.equal(output, expected)


@pytest.mark.parametrize("num_classes", [10, LOOPED])
@pytest.mark.parametrize("network", [0, 1], ids=["student", "teacher"])
def test_nan_stays_in_its_row(num_classes: int, network: int, device: torch.device):
    logits = _logits(3, num_classes, device)
    clean = kl_grad(*logits, 1.0)
    logits[network][1, num_classes - 1] = torch.nan
    for output, expected in zip(kl_grad(*logits, 1.0), clean, strict=True):
        assert torch.equal(output[[0, 2]], expected[[0, 2]])
    kl, *grads = kl_grad(*logits, 1.0)
    assert kl[1].isnan()
    assert grads[network][1].isnan().all()


@pytest.mark.parametrize("num_classes", [10, LOOPED])
def test_any_strides(num_classes: int, device: torch.device):
    student_logits, teacher_logits = _logits(4, num_classes, device)
    transposed = student_logits.T.contiguous().T
    sliced = torch.zeros(8, 2 * num_classes + 3, device=device)[1::2, 3::2].copy_(teacher_logits)
    for output, expected in zip(
        kl_grad(transposed, sliced, 1.0), kl_grad(student_logits, teacher_logits, 1.0), strict=True
    ):
        assert torch.equal(output, expected)
