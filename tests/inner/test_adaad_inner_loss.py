"""The drop-in function returns what the plain loop of existing AdaAD programs returns."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from plain import fraction_equal, inner_loop, kl_to_teacher, mean_kl

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
