"""kl_grad against float64 autograd, and with extreme, masked, strided or invalid logits."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate_as_torch
from implementations import assert_registered, assert_versions_agree, every_float_dtype, every_implementation
from torch import Tensor

from fastadaad import ops

INF = float("inf")


def autograd(student_logits: Tensor, teacher_logits: Tensor, temperature: float, dtype: torch.dtype):
    """Returns kl and its two gradients by autograd through torch's own loss."""
    student = student_logits.detach().to(dtype).requires_grad_()
    teacher = teacher_logits.detach().to(dtype).requires_grad_()
    log_p, log_q = (F.log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    kl = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
    return kl.detach(), *torch.autograd.grad(kl.sum(), (student, teacher))


def draw(batch: int, classes: int, dtype: torch.dtype = torch.float32, scale: float = 3.0):
    generator = torch.Generator().manual_seed(batch * 100_003 + classes)
    return [(scale * torch.randn(batch, classes, generator=generator)).to(dtype) for _ in range(2)]


def assert_accurate(run, student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> None:
    outputs = run("kl_grad", student_logits, teacher_logits, temperature)
    in_torch = autograd(student_logits, teacher_logits, temperature, torch.float32)
    in_double = autograd(student_logits, teacher_logits, temperature, torch.float64)
    dtypes = (torch.float32, student_logits.dtype, teacher_logits.dtype)
    for output, torch_output, double, dtype in zip(outputs, in_torch, in_double, dtypes, strict=True):
        assert_as_accurate_as_torch(output, torch_output.to(dtype), double)


@every_implementation
@every_float_dtype
@pytest.mark.parametrize(
    ("batch", "classes"),
    [(129, 1), (129, 2), (129, 10), (1, 10), (0, 10), (129, 16), (33, 100), (9, 257), (9, 1000), (2, 21843)],
)
def test_as_accurate_as_torch(run, dtype, batch, classes):
    student_logits, teacher_logits = draw(batch, classes, dtype)
    for temperature in (1.0, 4.0):
        assert_accurate(run, student_logits, teacher_logits, temperature)


@every_implementation
@pytest.mark.parametrize("classes", [10, 1000, 21843])
@pytest.mark.parametrize(("scale", "gap", "temperature"), [(3.0, 0.1, 30.0), (0.03, 0.1, 1.0), (3.0, 0.01, 1.0)])
def test_kl_of_networks_that_nearly_agree_keeps_its_digits(run, classes, scale, gap, temperature):
    """The terms q (log q - log p) cancel here: their sum in fp32 fails this at all shapes."""
    student_logits, change = draw(9, classes, scale=scale)
    teacher_logits = student_logits + gap * change
    kl, *_ = run("kl_grad", student_logits, teacher_logits, temperature)
    exact, *_ = autograd(student_logits, teacher_logits, temperature, torch.float64)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-4, atol=0)


@every_implementation
def test_dtypes_of_student_and_teacher_are_independent(run):
    student_logits, teacher_logits = draw(7, 10)
    assert_accurate(run, student_logits, teacher_logits.bfloat16(), 1.0)
    assert_accurate(run, student_logits.half(), teacher_logits, 1.0)


@every_implementation
@every_float_dtype
def test_any_strides_give_the_same_bits(run, dtype):
    student_logits, teacher_logits = draw(129, 100, dtype)
    wide = torch.full((129, 400), 7.0, dtype=dtype)
    wide[:, 3:303:3] = teacher_logits
    strided = run("kl_grad", student_logits.t().contiguous().t(), wide[:, 3:303:3], 1.0)
    for output, expected in zip(strided, run("kl_grad", student_logits, teacher_logits, 1.0), strict=True):
        assert torch.equal(output, expected)
        assert output.is_contiguous()


@every_implementation
def test_one_row_for_all_samples(run):
    student_logits, teacher_logits = draw(5, 10)
    shared = teacher_logits[:1].expand(5, 10)
    for output, expected in zip(
        run("kl_grad", student_logits, shared, 1.0), run("kl_grad", student_logits, shared.clone(), 1.0), strict=True
    ):
        assert torch.equal(output, expected)


@every_implementation
def test_extreme_logits(run):
    student_logits, teacher_logits = draw(33, 100, scale=1.0)
    assert_accurate(run, 1e4 * student_logits.sign(), 1e4 * teacher_logits.sign(), 1.0)
    assert_accurate(run, student_logits + 1e4, teacher_logits - 1e4, 1.0)
    assert_accurate(run, 30 * student_logits, -30 * student_logits, 1.0)


@every_implementation
def test_equal_distributions_have_no_divergence_and_no_gradient(run):
    student_logits, _ = draw(9, 257)
    for logits in (student_logits, torch.full((9, 257), 1e4)):
        for output in run("kl_grad", logits, logits.clone(), 1.0):
            assert torch.equal(output, torch.zeros_like(output))


@every_implementation
def test_class_masked_in_both_counts_as_absent(run):
    student_logits, teacher_logits = draw(9, 20)
    kept = torch.arange(20) % 3 != 1
    masked = [logits.masked_fill(~kept, -INF) for logits in (student_logits, teacher_logits)]
    kl, *gradients = run("kl_grad", *masked, 2.0)
    expected_kl, *expected = run("kl_grad", student_logits[:, kept], teacher_logits[:, kept], 2.0)
    torch.testing.assert_close(kl, expected_kl)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient[:, kept], expected_gradient)
        assert torch.equal(gradient[:, ~kept], torch.zeros(9, 7))


@every_implementation
def test_class_masked_by_the_teacher_only(run):
    student_logits, teacher_logits = draw(9, 20)
    teacher_logits[:, 4] = -INF
    kl, grad_student_logits, grad_teacher_logits = run("kl_grad", student_logits, teacher_logits, 1.0)
    log_p, log_q = student_logits.double().log_softmax(1), teacher_logits.double().log_softmax(1)
    expected = (log_q.exp() * (log_q - log_p)).nan_to_num(0.0).sum(1)  # 0 * -inf of the masked class
    torch.testing.assert_close(kl.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_student_logits[:, 4].double(), log_p[:, 4].exp(), rtol=1e-6, atol=1e-7)
    assert torch.equal(grad_teacher_logits[:, 4], torch.zeros(9))
    assert grad_teacher_logits.isfinite().all()


@every_implementation
def test_class_masked_by_the_student_only(run):
    student_logits, teacher_logits = draw(9, 20)
    student_logits[3, 4] = -INF
    kl, grad_student_logits, grad_teacher_logits = run("kl_grad", student_logits, teacher_logits, 1.0)
    assert kl[3] == INF
    assert kl.isfinite().sum() == 8
    p, q = student_logits.double().softmax(1)[3], teacher_logits.double().softmax(1)[3]
    torch.testing.assert_close(grad_student_logits[3].double(), p - q, rtol=1e-6, atol=1e-7)
    log_ratio = torch.where(p > 0, q.log() - p.log(), 0.0)
    expected = q * (log_ratio - (q * log_ratio).sum())
    torch.testing.assert_close(grad_teacher_logits[3].double(), expected, rtol=1e-5, atol=1e-6)


@every_implementation
def test_student_that_masks_all_classes(run):
    student_logits, teacher_logits = draw(3, 20)
    student_logits[1] = -INF
    kl, grad_student_logits, grad_teacher_logits = run("kl_grad", student_logits, teacher_logits, 1.0)
    assert kl[1] == INF
    assert grad_student_logits[1].isnan().all()
    assert torch.equal(grad_teacher_logits[1], torch.zeros(20))
    assert grad_student_logits[[0, 2]].isfinite().all()


@every_implementation
@every_float_dtype
@pytest.mark.parametrize("wrong", [float("nan"), INF])
@pytest.mark.parametrize("network", [0, 1])
def test_nan_and_inf_stay_in_their_own_sample(run, dtype, wrong, network):
    logits = draw(5, 33, dtype)
    clean = run("kl_grad", *logits, 1.0)
    logits[network][2, 20] = wrong
    others = torch.arange(5) != 2
    outputs = run("kl_grad", *logits, 1.0)
    for output, expected in zip(outputs, clean, strict=True):
        assert torch.equal(output[others], expected[others])
    assert outputs[0][2].isnan()
    assert outputs[1 + network][2].isnan().any()


@pytest.mark.parametrize("classes", [10, 257])
def test_versions_for_all_processors_agree_bit_for_bit(classes):
    assert_versions_agree("kl_grad", *draw(33, classes), 3.0)


def test_registration():
    student_logits, teacher_logits = draw(3, 10)
    assert_registered("kl_grad", ops.kl_grad, student_logits, teacher_logits.half(), 2.0)


def test_outputs_carry_no_autograd_graph():
    student_logits, teacher_logits = (logits.requires_grad_() for logits in draw(3, 10))
    assert not any(output.requires_grad for output in ops.kl_grad(student_logits, teacher_logits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(10)}, r"student_logits has shape \(10,\): it must be \[B, N\]"),
        ({"student_logits": torch.zeros(3, 0)}, r"student_logits has shape \(3, 0\).*at least one class"),
        ({"teacher_logits": torch.zeros(3, 9)}, r"teacher_logits has shape \(3, 9\): it must be \(3, 10\)"),
        ({"student_logits": torch.zeros(3, 10).double()}, r"student_logits is torch.float64: convert it to"),
        ({"teacher_logits": torch.zeros(3, 10).int()}, r"teacher_logits is torch.int32: convert it to"),
        ({"teacher_logits": torch.zeros(3, 10, device="meta")}, r"teacher_logits is on meta.*move both"),
        ({"temperature": 0.0}, r"temperature is 0.0: it must be a finite number > 0"),
        ({"temperature": float("nan")}, r"temperature is nan: it must be"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"student_logits": torch.zeros(3, 10), "teacher_logits": torch.zeros(3, 10), "temperature": 1.0}
    with pytest.raises(ValueError, match=message):
        ops.kl_grad(**(arguments | change))
