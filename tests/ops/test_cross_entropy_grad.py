"""cross_entropy_grad against float64 autograd, and with extreme, masked, strided or invalid logits."""

import pytest
import torch
import torch.nn.functional as F
from accuracy import assert_as_accurate_as_torch
from implementations import CPP, assert_registered, assert_versions_agree, every_float_dtype, every_implementation
from torch import Tensor

from fastadaad import ops

INF = float("inf")


def autograd(student_logits: Tensor, labels: Tensor, dtype: torch.dtype):
    """Returns loss and gradient by autograd through torch's own loss."""
    logits = student_logits.detach().to(dtype).requires_grad_()
    loss = F.cross_entropy(logits, labels, reduction="none")
    return loss.detach(), *torch.autograd.grad(loss.sum(), logits)


def draw(batch: int, classes: int, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(batch * 100_003 + classes)
    student_logits = (3 * torch.randn(batch, classes, generator=generator)).to(dtype)
    return student_logits, torch.randint(0, classes, (batch,), generator=generator)


def assert_accurate(run, student_logits: Tensor, labels: Tensor) -> None:
    outputs = run("cross_entropy_grad", student_logits, labels)
    in_torch = autograd(student_logits, labels, torch.float32)
    in_double = autograd(student_logits, labels, torch.float64)
    dtypes = (torch.float32, student_logits.dtype)
    for output, torch_output, double, dtype in zip(outputs, in_torch, in_double, dtypes, strict=True):
        assert_as_accurate_as_torch(output, torch_output.to(dtype), double)


@every_implementation
@every_float_dtype
@pytest.mark.parametrize(
    ("batch", "classes"),
    [(129, 1), (129, 2), (129, 10), (1, 10), (0, 10), (129, 16), (33, 100), (9, 257), (9, 1000), (2, 21843)],
)
def test_as_accurate_as_torch(run, dtype, batch, classes):
    assert_accurate(run, *draw(batch, classes, dtype))


@every_implementation
@every_float_dtype
def test_any_strides_give_the_same_bits(run, dtype):
    student_logits, labels = draw(129, 100, dtype)
    expected = run("cross_entropy_grad", student_logits, labels)
    wide = torch.full((129, 400), 7.0, dtype=dtype)
    wide[:, 3:303:3] = student_logits
    for logits in (wide[:, 3:303:3], student_logits.t().contiguous().t()):
        for output, wanted in zip(
            run("cross_entropy_grad", logits, labels.repeat_interleave(2)[::2]), expected, strict=True
        ):
            assert torch.equal(output, wanted)
            assert output.is_contiguous()


@every_implementation
def test_extreme_logits(run):
    student_logits, labels = draw(33, 100)
    assert_accurate(run, 1e4 * student_logits.sign(), labels)
    assert_accurate(run, student_logits + 1e4, labels)
    assert_accurate(run, torch.full((33, 100), -1e4), labels)


@pytest.mark.parametrize("run", CPP)
def test_small_probabilities_are_accurate_to_one_and_a_half_ulp(run):
    logit = torch.linspace(-86.9, 0, 50_001)
    student_logits = torch.stack([torch.zeros_like(logit), logit], dim=1)
    _, grad_student_logits = run("cross_entropy_grad", student_logits, torch.zeros(50_001).long())
    exact = student_logits.double().softmax(1)[:, 1]
    assert ((grad_student_logits[:, 1] - exact) / exact).abs().max() <= 3 * 2**-24


@every_implementation
def test_masked_classes(run):
    student_logits, _ = draw(9, 20)
    kept = torch.arange(20) >= 7
    labels = torch.arange(9)
    loss, grad_student_logits = run("cross_entropy_grad", student_logits.masked_fill(~kept, -INF), labels + 7)
    expected_loss, expected_gradient = run("cross_entropy_grad", student_logits[:, kept], labels)
    torch.testing.assert_close(loss, expected_loss)
    torch.testing.assert_close(grad_student_logits[:, kept], expected_gradient)
    assert torch.equal(grad_student_logits[:, ~kept], torch.zeros(9, 7))


@every_implementation
def test_masked_label_has_infinite_loss_and_finite_gradient(run):
    student_logits, labels = draw(9, 20)
    student_logits[3, labels[3]] = -INF
    loss, grad_student_logits = run("cross_entropy_grad", student_logits, labels)
    assert loss[3] == INF
    assert loss.isfinite().sum() == 8
    assert grad_student_logits[3, labels[3]] == -1
    assert grad_student_logits.isfinite().all()


@every_implementation
@every_float_dtype
@pytest.mark.parametrize("wrong", [float("nan"), INF])
def test_nan_and_inf_stay_in_their_own_sample(run, dtype, wrong):
    student_logits, labels = draw(5, 33, dtype)
    clean = run("cross_entropy_grad", student_logits, labels)
    student_logits[2, 20] = wrong
    others = torch.arange(5) != 2
    loss, grad_student_logits = run("cross_entropy_grad", student_logits, labels)
    assert torch.equal(loss[others], clean[0][others])
    assert torch.equal(grad_student_logits[others], clean[1][others])
    assert loss[2].isnan()
    assert grad_student_logits[2].isnan().any()


@pytest.mark.parametrize("classes", [10, 257])
def test_versions_for_all_processors_agree_bit_for_bit(classes):
    assert_versions_agree("cross_entropy_grad", *draw(33, classes))


def test_registration():
    assert_registered("cross_entropy_grad", ops.cross_entropy_grad, *draw(3, 10))


@pytest.mark.parametrize("run", CPP)
@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(run, label):
    with pytest.raises(RuntimeError, match=rf"labels\[1\] is {label}: it must be in \[0, 10\)"):
        run("cross_entropy_grad", torch.zeros(3, 10), torch.tensor([0, label, 0]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student_logits": torch.zeros(3, 10, 1)}, r"student_logits has shape \(3, 10, 1\): it must be \[B, N\]"),
        ({"student_logits": torch.zeros(3, 10).double()}, r"student_logits is torch.float64: convert it to"),
        ({"labels": torch.zeros(3)}, r"labels is torch.float32: convert it to torch.int64"),
        ({"labels": torch.zeros(2).long()}, r"labels has shape \(2,\): it must be \(3,\)"),
        ({"labels": torch.zeros(3, device="meta").long()}, r"labels is on meta.*move both"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"student_logits": torch.zeros(3, 10), "labels": torch.zeros(3).long()}
    with pytest.raises(ValueError, match=message):
        ops.cross_entropy_grad(**(arguments | change))
