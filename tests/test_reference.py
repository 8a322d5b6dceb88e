"""bench/reference.py is what it says: the same mathematics as Distiller, in the authors' order of passes."""

import copy

import torch
from networks import images_and_labels, student_and_teacher

from bench.reference import reference_step
from fastadaad import Distiller, InnerConfig, ThreatModel, methods


def test_three_reference_steps_train_the_student_that_distiller_trains():
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels(batch_size=6)
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=4)
    other, other_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9) for network in (student, other)]
    method = methods.get("adaad", kl_reduction="mean")
    distiller = Distiller(student, teacher.eval(), method=method, inner=inner, optimizer=optimizers[0], mode="eager")
    for seed in range(3):
        torch.manual_seed(seed)
        loss = distiller.step(x_natural).loss
        torch.manual_seed(seed)
        other_loss = reference_step(
            other, other_teacher, optimizers[1], x_natural, step_size=0.03, num_steps=4, epsilon=0.1
        )
        torch.testing.assert_close(loss, other_loss, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(student.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-6)
