"""FLOPs and bytes of a step, checked against manual counts, torch's counter and known figures."""

from contextlib import nullcontext

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.flops import OUTER_PASSES, inner_teacher_passes, method_cost, network_cost, step_cost
from fastadaad import Distiller, InnerConfig, ThreatModel, load_model, methods
from fastadaad.config import TeacherPolicy
from fastadaad.training.plain_program import REFERENCES

IMAGE = (3, 8, 8)
BATCH_SIZE, NUM_STEPS = 4, 3


def small() -> nn.Module:
    convolutions = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 10, 3, stride=2, groups=5)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(90, 7))


# 8x8 outputs of 27 products for 5 channels; 3x3 outputs of 9 products for 10 channels; 7 outputs of 90 products.
FIRST, REST = 2 * 64 * 27 * 5, 2 * 9 * 9 * 10 + 2 * 7 * 90
ELEMENTS_FIRST, ELEMENTS_REST = 192 + 320, 320 + 90 + 90 + 7
WEIGHTS = 3 * 5 * 9 + 10 * 9 + 7 * 90


def test_a_forward_pass_equals_the_manual_count():
    cost = network_cost(small(), IMAGE)
    assert cost.flops == FIRST + REST
    assert cost.elements == ELEMENTS_FIRST + ELEMENTS_REST
    assert cost.weights == WEIGHTS


@pytest.mark.parametrize(("name", "gflop"), [("resnet18", 1.111), ("wrn-16-4", 0.785), ("wrn-34-20", 53.16)])
def test_known_networks(name, gflop):
    assert network_cost(load_model(name), (3, 32, 32)).flops / 1e9 == pytest.approx(gflop, abs=0.005)


def test_a_step_equals_the_manual_count():
    student, teacher = network_cost(small(), IMAGE), network_cost(nn.Sequential(nn.Flatten(), nn.Linear(192, 7)), IMAGE)
    cost = step_cost(student, teacher, 2, teacher_forwards=1, teacher_backwards=3, batch_size=10, element_bytes=2)
    # Student: two steps forward and backward, one pass for statistics, one trained pass without gradient to the pixels.
    assert cost.flops == (2 * 2 + 1 + 3) * (FIRST + REST) - FIRST + (1 + 3 + 1) * 2 * 192 * 7
    elements = 8 * (ELEMENTS_FIRST + ELEMENTS_REST) - ELEMENTS_FIRST + 5 * (192 + 7) + (3 + 2 * 4) * 192
    weights = (8 + 5) * WEIGHTS + 5 * 192 * 7
    assert cost.num_bytes == pytest.approx(2 * (elements + weights / 10))


class NoModules(nullcontext):
    """Replacement of the counter's module tracker, which fails under autograd.grad."""

    parents = ("Global",)


@pytest.mark.parametrize("method", OUTER_PASSES)
def test_a_step_of_distiller_equals_the_count_of_torch(method):
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels(BATCH_SIZE)
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=NUM_STEPS)
    row = methods.get(method, **REFERENCES[method].options)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distiller = Distiller(student, teacher, method=row, inner=inner, optimizer=optimizer, mode="eager")
    distiller.step(x_natural, labels)  # the first step may measure layouts
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = NoModules()
    with counter:
        distiller.step(x_natural, labels)
    costs = network_cost(student, IMAGE), network_cost(teacher, IMAGE)
    assert counter.get_total_flops() == BATCH_SIZE * method_cost(method, *costs, NUM_STEPS, as_program=True).flops


@pytest.mark.parametrize(
    ("policy", "passes"),
    [
        ("exact", (10, 10)),
        ("refreshed(every=5)", (2, 2)),
        ("refreshed(every=4)", (3, 3)),
        ("linearized(top=3,every=10)", (1, 3)),
    ],
)
def test_teacher_passes_of_a_policy(policy, passes):
    assert inner_teacher_passes(10, TeacherPolicy.parse(policy)) == passes
