"""Fractions of gradient signs and zeros, against an independent gradient and with planted faults."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network
from plain import kl_to_teacher
from torch import Tensor, nn

from fastadaad.config import InnerConfig, PrecisionConfig
from fastadaad.inner import precision_report
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.precision_report import PrecisionReport, measure
from fastadaad.runtime.precision import STRICT_FP32

# So that the gradient's point is known without drawing.
NATURAL = InnerConfig(start="natural")


def maximizer(student: nn.Module, teacher: nn.Module, low: str, **changes) -> InnerMaximizer:
    precision = PrecisionConfig(student=low, teacher=low)
    return InnerMaximizer(student, teacher, inner=NATURAL, precision=precision, layout="contiguous", **changes)


def report_of(search: InnerMaximizer) -> PrecisionReport:
    return measure(search, *images_and_labels(64), seed=0)


def float64_gradient(student: nn.Module, teacher: nn.Module, x: Tensor) -> Tensor:
    """Of the kl with respect to the pixels, by plain autograd."""
    student, teacher = (copy.deepcopy(network).double().eval() for network in (student, teacher))
    x = x.double().requires_grad_()
    return torch.autograd.grad(kl_to_teacher(student, teacher)(x), x)[0]


def test_bf16_agrees_with_fp32_on_most_pixels_but_not_on_all():
    report = report_of(maximizer(*student_and_teacher(), "bf16"))
    assert 0.9 < report.same_sign < 1
    assert report.zeros < 0.1


def test_fp32_agrees_with_itself():
    report = report_of(maximizer(*student_and_teacher(), "fp32"))
    assert report.same_sign > 0.999  # the copy is folded, so rounding differs
    assert report.zeros == pytest.approx(report.zeros_in_fp32, abs=1e-3)


@pytest.mark.parametrize("known", [0.3, 0.8])
def test_both_fractions_are_those_of_a_known_gradient(monkeypatch, known):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels(64)
    expected = float64_gradient(student, teacher, x_natural).float()
    generator = torch.Generator().manual_seed(1)
    wrong, still = (torch.rand(expected.shape, generator=generator) < share for share in (known, 0.1))
    true_gradient = precision_report._gradient

    def planted(search, precision, *arguments):
        gradient = true_gradient(search, precision, *arguments)
        if precision == STRICT_FP32:
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
            return gradient
        return torch.where(wrong, -expected, expected).masked_fill(still, 0)

    monkeypatch.setattr(precision_report, "_gradient", planted)
    report = report_of(maximizer(student, teacher, "bf16"))
    agrees = (~wrong & ~still & (expected != 0)) | (still & (expected == 0))
    assert report.same_sign == pytest.approx(agrees.double().mean().item(), abs=1e-3)
    assert report.zeros == pytest.approx((still | (expected == 0)).double().mean().item(), abs=1e-3)


class WithoutGradient(nn.Module):
    """A teacher whose part of the pixel gradient is lost."""

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, x: Tensor) -> Tensor:
        return self.teacher(x).detach() + 0 * x.sum()


def test_a_lost_teacher_gradient_shows():
    search = maximizer(*student_and_teacher(), "bf16")
    right = report_of(search)
    folded_teacher = search.teacher_network
    search.teacher_network = lambda x: WithoutGradient(folded_teacher(x))
    assert report_of(search).same_sign < right.same_sign - 0.1


def test_the_scale_of_fp16_keeps_gradients_from_vanishing(monkeypatch):
    student = tiny_network(1)
    teacher = copy.deepcopy(student)
    with torch.no_grad():
        teacher[-1].weight.mul_(1 + 3e-5)  # a student that has nearly learnt its teacher: tiny gradients
    search = maximizer(student, teacher, "fp16")
    scaled = report_of(search)
    monkeypatch.setattr(precision_report, "gradient_scale", lambda precision: 1.0)
    unscaled = report_of(search)
    assert scaled.zeros_in_fp32 == unscaled.zeros_in_fp32 < 0.05
    assert unscaled.zeros > scaled.zeros + 0.2
    assert unscaled.same_sign < scaled.same_sign


def test_measuring_changes_neither_the_networks_nor_torchs_generator():
    student, teacher = student_and_teacher()
    teacher.eval()
    search = maximizer(student, teacher, "bf16")
    before = copy.deepcopy((student.state_dict(), teacher.state_dict()))
    random_state = torch.get_rng_state()
    first = measure(search, *images_and_labels(16), seed=0)
    assert measure(search, *images_and_labels(16), seed=0) == first
    for state, network in zip(before, (student, teacher), strict=True):
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name]), name
        assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert (student.training, teacher.training) == (True, False)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_line_states_both_shares():
    line = str(PrecisionReport(same_sign=0.9712, zeros=0.0203, zeros_in_fp32=0.0001))
    assert "97.12% of the pixel gradients have the sign that fp32 gives them" in line
    assert "2.03% are exactly 0 (0.01% in fp32)" in line
