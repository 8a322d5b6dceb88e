"""Steps of different lengths: the search is the plain loop with them, in each mode, and settings that do not fit."""

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from plain import fraction_equal, kl_to_teacher, mean_kl
from torch._dynamo.testing import CompileCounterWithBackend

from fastadaad import InnerConfig, InnerMaximizer, ThreatModel
from fastadaad.inner.policy_probe import kl_sums

FACTORS, STEP_SIZE, EPSILON = (3.0, 1.5, 0.75), 4 / 255, 16 / 255
INNER = InnerConfig(
    threat_model=ThreatModel(epsilon=EPSILON), step_size=STEP_SIZE, num_steps=3, step_factors=FACTORS, start="natural"
)


def plain_search(student, teacher, x_natural):
    """Three signed steps of autograd, the length of each written out."""
    x_adv, value = x_natural, kl_to_teacher(student, teacher)
    for length in (12 / 255, 6 / 255, 3 / 255):
        x_adv = x_adv.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(value(x_adv), x_adv)
        x_adv = x_adv + length * gradient.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x_natural - EPSILON), x_natural + EPSILON).clamp(0, 1)
    return x_adv.detach()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_the_search_is_a_plain_loop_with_these_lengths(mode):
    student, teacher = (network.eval() for network in student_and_teacher())
    x, _ = images_and_labels()
    options = {"backend": "aot_eager"} if mode == "compiled" else {}
    maximizer = InnerMaximizer(student, teacher, inner=INNER, mode=mode, compile_options=options)
    expected = plain_search(student, teacher, x)
    assert fraction_equal(maximizer(x), expected) > 0.99
    assert fraction_equal(InnerMaximizer(student, teacher, inner={"num_steps": 3})(x), expected) < 0.9


def test_a_step_is_compiled_once_for_each_length():
    torch._dynamo.reset()
    (student, teacher), (x, _) = student_and_teacher(), images_and_labels()
    counter = CompileCounterWithBackend("aot_eager")
    inner = InnerConfig(num_steps=6, step_factors=(3, 3, 1.5, 1.5, 1, 1))
    maximizer = InnerMaximizer(student, teacher, inner=inner, mode="compiled", compile_options={"backend": counter})
    for _ in range(2):
        maximizer(x)
    assert counter.frame_count == 3


def test_more_lengths_than_torch_recompiles_by_default_are_compiled():
    torch._dynamo.reset()
    assert torch._dynamo.config.recompile_limit < 10
    student, teacher = (network.eval() for network in student_and_teacher())
    x, _ = images_and_labels()
    inner = InnerConfig(num_steps=10, step_factors=[2 - 0.1 * step for step in range(10)], start="natural")
    compiled = InnerMaximizer(student, teacher, inner=inner, mode="compiled", compile_options={"backend": "aot_eager"})
    assert fraction_equal(compiled(x), InnerMaximizer(student, teacher, inner=inner)(x)) > 0.99


def test_the_probe_searches_with_the_same_lengths():
    student, teacher = (network.eval() for network in student_and_teacher())
    x, labels = images_and_labels()
    maximizer = InnerMaximizer(student, teacher, inner=INNER, teacher_policy="refreshed(every=2)")
    exact = plain_search(student, teacher, x)
    _, best = kl_sums(maximizer, x, labels).tolist()
    assert best == pytest.approx(len(x) * mean_kl(student, teacher, exact), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_factors": (2, 1)}, "step_factors has 2 numbers for num_steps=10: give one for each step"),
        ({"step_factors": "3,2,1"}, "step_factors is a str: give a list of numbers"),
        ({"num_steps": 1, "step_factors": (float("nan"),)}, "step_factors is nan: it must be finite numbers"),
        ({"num_steps": 2, "step_factors": (1, -1)}, "step_factors is -1: it must be finite numbers, 0 or more"),
        ({"num_steps": 2, "step_factors": (8, 1)}, "step_size 0.0627 is more than epsilon 0.0314"),
    ],
)
def test_factors_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        InnerConfig(**settings)
