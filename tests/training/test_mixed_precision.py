"""Training pass of the student in bf16 and fp16: close to fp32, first convolution in fp32, no infinite updates."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from torch import nn

from fastadaad import Distiller, InnerConfig
from fastadaad.config import PrecisionConfig
from fastadaad.training.mixed_precision import MixedPrecision, first_convolution_in_fp32, in_precision
from fastadaad.training.optimizers import LARS

INNER = InnerConfig(num_steps=2, start="natural")


def distiller(student: nn.Module, teacher: nn.Module, precision: str, **settings) -> Distiller:
    settings = {"optimizer": torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=True)} | settings
    return Distiller(
        student, teacher, inner=INNER, precision=PrecisionConfig(student=precision, teacher="fp32"), **settings
    )


def trained(precision: str, method: str = "adaad", **settings) -> tuple[nn.Module, Distiller]:
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, precision, method=method, **settings)
    training.step(*images_and_labels(), epoch=100)
    return student, training


@pytest.mark.parametrize("method", ["adaad", "trades", "adaiad", "adaad+igdm"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_gradient_in_half_precision_is_close_to_that_in_fp32(precision, method):
    expected, _ = trained("fp32", method)
    student, _ = trained(precision, method)  # SGD has unscaled the gradients of fp16
    differs = False
    for (name, parameter), wanted in zip(student.named_parameters(), expected.parameters(), strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        similarity = F.cosine_similarity(parameter.grad.flatten(), wanted.grad.flatten(), dim=0)
        assert similarity > 0.99, name
        assert (parameter.grad.norm() / wanted.grad.norm()).item() == pytest.approx(1, rel=0.03), name
        differs |= not torch.equal(parameter.grad, wanted.grad)
    assert differs  # the pass ran in half precision


def test_fp32_equals_a_distiller_without_precision():
    student, _ = trained("fp32")
    expected, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, fused=True)
    Distiller(expected, teacher, inner=INNER, optimizer=optimizer).step(*images_and_labels(), epoch=100)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), expected.parameters(), strict=True))
    assert in_precision(student, "fp32") is student
    assert in_precision(student, "tf32") is student


def test_the_first_convolution_computes_in_fp32_and_the_next_do_not():
    student, _ = student_and_teacher()
    x = images_and_labels()[0]
    dtypes = {}
    for name in ("0", "3"):
        student.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: dtypes.update({name: output.dtype})
        )
    mixed = MixedPrecision(student, torch.bfloat16)
    with first_convolution_in_fp32(mixed):
        logits = mixed(x)
    assert dtypes == {"0": torch.float32, "3": torch.bfloat16}
    assert logits.dtype == torch.float32
    assert type(student[0]) is nn.Conv2d  # afterwards, as it was


def test_the_step_keeps_the_first_convolution_in_fp32():
    student, teacher = student_and_teacher()
    dtypes = []
    student[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    student[0].weight.register_hook(lambda gradient: dtypes.append(gradient.dtype))
    with pytest.raises(ValueError, match="precision bf16 needs a folded network"):  # a network with hooks is not folded
        distiller(student, teacher, "bf16").step(*images_and_labels())
    training = distiller(student, teacher, "fp32")
    training._outer_student = MixedPrecision(student, torch.bfloat16)
    dtypes.clear()
    training.step(*images_and_labels())
    assert set(dtypes) == {torch.float32}


def test_an_infinite_gradient_skips_the_update_and_halves_the_scale():
    student, training = trained("fp16")
    scale = training.scaler.get_scale()
    before = copy.deepcopy(dict(student.named_parameters()))
    student[-1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    training.step(*images_and_labels(seed=1))
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())
    assert training.scaler.get_scale() == scale / 2


def test_a_skipped_first_update_leaves_no_trace(monkeypatch):
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: empty_like(x, **options).fill_(torch.nan))
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, "fp16")
    hook = student[-1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    training.step(*images_and_labels())
    hook.remove()
    training.step(*images_and_labels(seed=1))
    for parameter in student.parameters():
        assert parameter.isfinite().all()
        assert torch.equal(training.optimizer.state[parameter]["momentum_buffer"], parameter.grad)


def test_the_scale_does_not_change_the_update():
    student, _ = trained("fp16")
    expected, _ = trained("fp32")
    start, _ = student_and_teacher()
    with torch.no_grad():
        for (name, parameter), wanted in zip(student.named_parameters(), expected.parameters(), strict=True):
            moves = [(after - start.get_parameter(name)).norm().item() for after in (parameter, wanted)]
            assert moves[0] == pytest.approx(moves[1], rel=0.1), name


def test_the_scaler_can_be_saved_and_loaded():
    _, training = trained("fp16")
    training.scaler.update(1024.0)
    _, resumed = trained("fp16")
    resumed.scaler.load_state_dict(training.scaler.state_dict())
    assert resumed.scaler.get_scale() == 1024.0


def test_a_wait_for_the_device_warns_and_awp_in_fp16_is_refused():
    student, teacher = student_and_teacher()
    with pytest.warns(UserWarning, match="fp16 waits for the device at each step of LARS"):
        distiller(student, teacher, "fp16", optimizer=LARS(student.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distiller(student, teacher, "fp16")
        distiller(student, teacher, "bf16", optimizer=LARS(student.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=r"AWP.*fp16: set precision.student to bf16"):
        distiller(student, teacher, "fp16", awp_gamma=0.005)


@pytest.mark.slow
def test_a_compiled_step_in_bf16_is_close_to_an_eager_one():
    torch._dynamo.reset()
    student, training = trained("bf16")
    compiled_student, compiled = trained("bf16", mode="compiled", compile_options={"backend": "aot_eager"})
    for (name, parameter), wanted in zip(compiled_student.named_parameters(), student.parameters(), strict=True):
        assert F.cosine_similarity(parameter.grad.flatten(), wanted.grad.flatten(), dim=0) > 0.99, name
    with torch.compiler.set_stance("fail_on_recompile"):
        losses = [each.step(*images_and_labels(seed=1), epoch=100).loss.item() for each in (training, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
