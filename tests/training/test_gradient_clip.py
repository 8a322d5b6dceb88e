"""grad_clip against torch's clip_grad_norm_ in a plain loop, and against the gradients of a step that does not clip."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from recorded_graph import assert_replayable
from rich.console import Console
from tiny_runs import tiny_run
from torch import Tensor, nn
from torch.testing import assert_close

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig
from fastadaad.config import PrecisionConfig
from fastadaad.run_config import OptimConfig
from fastadaad.training.gradient_clip import clip_gradients
from fastadaad.training.nonfinite import TENSORS, NonFiniteError
from fastadaad.training.trainer import Trainer

INNER = InnerConfig(num_steps=2, start="natural")
NUM_STEPS = 3
CLIP = 0.1


def sgd(student: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(student.parameters(), lr=0.5, momentum=0.9, fused=True)


def distiller(student: nn.Module, teacher: nn.Module, **settings) -> Distiller:
    return Distiller(student, teacher, **{"method": "pgd-at", "inner": INNER, "optimizer": sgd(student)} | settings)


def norm_of(gradients: list[Tensor]) -> float:
    """Norm of all gradients together, in float64."""
    return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))


def gradients_of(student: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in student.parameters()]


def test_a_step_trains_as_a_plain_loop_with_clip_grad_norm():
    student, teacher = student_and_teacher()
    plain = copy.deepcopy(student)
    clipped, optimizer, norms = distiller(student, teacher, grad_clip=CLIP), sgd(plain), []
    for seed in range(NUM_STEPS):
        x_natural, labels = images_and_labels(seed=seed)
        x_adv = clipped.step(x_natural, labels).x_adv
        optimizer.zero_grad()
        F.cross_entropy(plain(x_adv), labels).backward()
        norms.append(nn.utils.clip_grad_norm_(plain.parameters(), CLIP).item())
        optimizer.step()
    assert min(norms) > 2 * CLIP  # each step clips
    for parameter, wanted in zip(student.parameters(), plain.parameters(), strict=True):
        assert_close(parameter, wanted, rtol=1e-5, atol=1e-6)


SETTINGS = {
    "eager": {},
    "micro-batches": {"micro_batch": 6},
    "awp": {"awp_gamma": 0.05},
    "awp in micro-batches": {"awp_gamma": 0.05, "micro_batch": 6},
    "adaad": {"method": "adaad"},
    "bf16": {"precision": PrecisionConfig(student="bf16", teacher="fp32")},
    "fp16": {"precision": PrecisionConfig(student="fp16", teacher="fp32")},
    "compiled": {"mode": "compiled", "compile_options": {"backend": "aot_eager"}},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "compiled")) for name in SETTINGS]
)
def test_the_update_follows_the_shortened_gradient(name):
    """Without momentum the update is the gradient itself, unscaled in fp16, whatever was done on the way to it."""
    torch._dynamo.reset()
    moves, norms = {}, {}
    for clip in (None, CLIP):
        student, teacher = student_and_teacher()
        before = [parameter.detach().clone() for parameter in student.parameters()]
        optimizer = torch.optim.SGD(student.parameters(), lr=1.0, fused=True)
        step = distiller(student, teacher, optimizer=optimizer, grad_clip=clip, **SETTINGS[name]).step
        step(*images_and_labels())
        moves[clip] = [old - new.detach() for new, old in zip(student.parameters(), before, strict=True)]
        norms[clip] = norm_of(moves[clip])
    assert norms[None] > 2 * CLIP
    assert norms[CLIP] == pytest.approx(CLIP, rel=1e-4)
    for clipped, whole in zip(moves[CLIP], moves[None], strict=True):
        assert_close(clipped, whole * (CLIP / norms[None]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"awp_gamma": 0.05}], ids=str)
def test_a_shorter_gradient_is_left_bitwise_as_it_is(settings):
    students = []
    for clip in (None, 1e6):
        student, teacher = student_and_teacher()
        step = distiller(student, teacher, grad_clip=clip, **settings).step
        for seed in range(NUM_STEPS):
            step(*images_and_labels(seed=seed))
        students.append(student)
    assert all(map(torch.equal, *(student.state_dict().values() for student in students)))


def test_an_infinite_gradient_is_reported_as_without_clipping():
    messages = []
    for clip in (None, CLIP):
        student, teacher = student_and_teacher()
        clipped = distiller(student, teacher, grad_clip=clip)
        student[3].weight.register_hook(lambda gradient: gradient * torch.inf)
        clipped.step(*images_and_labels())
        with pytest.raises(NonFiniteError) as error:
            clipped.check_finite()
        messages.append(str(error.value))
    assert "the gradients while the loss is finite" in messages[0]
    assert messages[0] == messages[1]


def test_a_norm_that_overflows_counts_although_each_gradient_is_finite():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.full((1,), 1.5e19)  # its square is below 3.4e38, the sum of four is not
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    found = clip_gradients(torch.optim.SGD(parameters, lr=1.0), scaler, CLIP)
    assert [name for name, is_bad in zip(TENSORS, found.tolist(), strict=True) if is_bad] == ["gradients"]


def test_an_infinite_gradient_in_fp16_skips_the_update_and_halves_the_scale():
    student, teacher = student_and_teacher()
    training = distiller(student, teacher, grad_clip=CLIP, precision=PrecisionConfig(student="fp16", teacher="fp32"))
    training.step(*images_and_labels())
    before, scale = copy.deepcopy(dict(student.named_parameters())), training.scaler.get_scale()
    hook = student[-1].weight.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))
    training.step(*images_and_labels(seed=1))
    hook.remove()
    assert all(torch.equal(parameter, before[name]) for name, parameter in student.named_parameters())
    assert training.scaler.get_scale() == scale / 2
    training.check_finite()
    training.step(*images_and_labels(seed=2))
    assert norm_of(gradients_of(student)) == pytest.approx(CLIP, rel=1e-4)


def test_clipping_does_not_make_the_host_wait_and_can_be_replayed():
    student, _ = student_and_teacher()
    parameters, factor = list(student.parameters()), torch.tensor(1.0)
    optimizer = sgd(student)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    scaler = torch.amp.GradScaler("cpu", enabled=False)

    def clip() -> list[Tensor]:
        torch._foreach_mul_([parameter.grad for parameter in parameters], factor)
        found = clip_gradients(optimizer, scaler, CLIP)
        return [found, *(parameter.grad for parameter in parameters)]

    with HostSyncWatch() as watch:
        clip()
    assert watch.seen == []
    static = [factor, *(parameter.grad for parameter in parameters)]
    with torch.no_grad():
        assert_replayable(clip, static, changes=[lambda: factor.fill_(1e-3), lambda: factor.fill_(1e3)])


def test_a_run_clips_by_its_setting(tmp_path):
    run = Trainer(
        tiny_run(optim=OptimConfig(epochs=1, learning_rate=0.2, grad_clip=0.01)), tmp_path, Console(quiet=True)
    )
    run.train()
    assert norm_of(gradients_of(run.state.student)) == pytest.approx(0.01, rel=1e-4)
