"""The drop-in function returns what the plain loop of existing AdaAD programs returns."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from plain import fraction_equal, inner_loop, kl_to_teacher, mean_kl
from torch import nn

import fastadaad


@pytest.mark.parametrize(("random_init", "bn_eval"), [(True, True), (False, False)])
def test_the_drop_in_function_is_the_plain_loop(random_init, bn_eval):
    student, teacher = student_and_teacher()
    student.train(not bn_eval)
    plain_student, plain_teacher = copy.deepcopy(student), copy.deepcopy(teacher).eval()
    x_natural, _ = images_and_labels()
    torch.manual_seed(11)
    x_adv = fastadaad.adaad_inner_loss(
        student,
        teacher,
        x_natural,
        step_size=3 / 255,
        steps=7,
        epsilon=12 / 255,
        BN_eval=bn_eval,
        random_init=random_init,
    )
    torch.manual_seed(11)
    start = x_natural + 0.001 * torch.randn(x_natural.shape) if random_init else x_natural
    value = kl_to_teacher(plain_student, plain_teacher)
    settings = {"norm": "linf", "step_size": 3 / 255, "num_steps": 7, "epsilon": 12 / 255}
    expected = inner_loop(value, x_natural, start, **settings)
    assert fraction_equal(x_adv, expected) >= 0.999
    assert mean_kl(student, teacher, x_adv) == pytest.approx(mean_kl(student, teacher, expected), rel=1e-3)


def test_the_drop_in_functions_defaults_are_those_of_the_papers_training():
    student, teacher = (network.eval() for network in student_and_teacher())
    x_natural, _ = images_and_labels()
    torch.manual_seed(11)
    x_adv = fastadaad.adaad_inner_loss(student, teacher, x_natural)
    torch.manual_seed(11)
    start = x_natural + 0.001 * torch.randn(x_natural.shape)
    settings = {"norm": "linf", "step_size": 2 / 255, "num_steps": 10, "epsilon": 8 / 255}
    assert fraction_equal(x_adv, inner_loop(kl_to_teacher(student, teacher), x_natural, start, **settings)) >= 0.999


def authors_loop(student, teacher, x, *, step_size, steps, epsilon, random_init=True, bn_eval=True) -> torch.Tensor:
    """The authors' function as their file has it, restated: torch decides about every dtype."""
    student.train(not bn_eval)
    x_adv = x + 0.001 * torch.randn(x.shape) if random_init else x
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        kl = F.kl_div(F.log_softmax(student(x_adv), 1), F.softmax(teacher(x_adv), 1), reduction="none").sum()
        (gradient,) = torch.autograd.grad(kl, [x_adv])
        x_adv = x_adv.detach() + step_size * torch.sign(gradient)
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    return x_adv.detach().clamp(0, 1)


def rows() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    student, teacher = (nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)) for _ in "st")
    return student, teacher.eval(), torch.rand(6, 12)


def videos() -> tuple[nn.Module, nn.Module, torch.Tensor]:
    torch.manual_seed(3)
    student, teacher = (
        nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)) for _ in "st"
    )
    return student, teacher.eval(), torch.rand(6, 2, 4, 4, 4)


def images(dtype: torch.dtype = torch.float32, network_dtype: torch.dtype | None = None):
    student, teacher = (network.to(network_dtype or dtype) for network in student_and_teacher())
    return student, teacher.eval(), images_and_labels()[0].to(dtype)


SHORT = {"step_size": 2 / 255, "steps": 3, "epsilon": 8 / 255}
CALLS = {  # networks and images, arguments, words of the warning
    "step and radius swapped": (images, {**SHORT, "step_size": 8 / 255, "epsilon": 2 / 255}, "are the two swapped"),
    "one step of any length": (images, {**SHORT, "step_size": 0.5, "steps": 1}, "more than twice epsilon"),
    "pixels outside": (lambda: (*images()[:2], 3 * images()[2] - 1), SHORT, r"pixels from -1 to 2, outside \[0, 1\]"),
    "float64": (partial(images, torch.float64), SHORT, "is torch.float64 .*: the plain loop runs"),
    "float16 images": (partial(images, torch.float16, torch.float32), SHORT, "is torch.float16"),
    "train mode, float64": (partial(images, torch.float64), {**SHORT, "bn_eval": False}, "the plain loop runs"),
    "rows": (rows, SHORT, r"\[6, 12\]: the plain loop runs"),
    "videos": (videos, {**SHORT, "random_init": False}, r"\[6, 2, 4, 4, 4\]: the plain loop runs"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_that_the_authors_function_takes_gives_its_result_with_a_warning(name):
    make, arguments, words = CALLS[name]
    student, teacher, x = make()
    expected_student = copy.deepcopy(student)
    torch.manual_seed(11)
    expected = authors_loop(expected_student, teacher, x, **arguments)
    theirs = {"bn_eval": "BN_eval"}
    torch.manual_seed(11)
    with pytest.warns(UserWarning, match=words):
        x_adv = fastadaad.adaad_inner_loss(
            student, teacher, x, **{theirs.get(key, key): value for key, value in arguments.items()}
        )
    assert x_adv.dtype == expected.dtype
    assert fraction_equal(x_adv, expected) >= 0.999
    assert student.training
    assert all(parameter.requires_grad for parameter in student.parameters())
    for buffer, wanted in zip(student.buffers(), expected_student.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted)


@pytest.mark.parametrize("random_init", [True, False])
def test_no_steps_return_the_start_clipped(random_init):
    student, teacher, x = images()
    torch.manual_seed(11)
    expected = authors_loop(student, teacher, x, **{**SHORT, "steps": 0}, random_init=random_init)
    student.train()
    torch.manual_seed(11)
    assert torch.equal(fastadaad.adaad_inner_loss(student, teacher, x, steps=0, random_init=random_init), expected)


@pytest.mark.filterwarnings("ignore:x_natural is torch.float64")
@pytest.mark.parametrize(
    "setting", [{"mode": "compiled"}, {"precision": "fp32"}, {"teacher_policy": "refreshed(every=2)"}], ids=str
)
def test_settings_that_the_plain_loop_lacks_are_refused(setting):
    student, teacher, x = images(torch.float64)
    with pytest.raises(ValueError, match="mode, precision and teacher_policy need fp32 images"):
        fastadaad.adaad_inner_loss(student, teacher, x, **setting)
