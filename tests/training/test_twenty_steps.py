"""Twenty training steps of each method: with the kernels, the reference operations and the plain restatement.

Networks, steps and rate are such that a pixel whose gradient is almost 0, and whose sign rounding decides, does not
change the outcome much: relative noise of 1e-6 in the images, ten times their rounding, moved it by at most 1.1 times
the tolerance in ten draws for each method, and by less than 0.2 times for all but one.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import images_and_labels, smooth, tiny_network
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, ThreatModel, methods, ops
from fastadaad.training.plain_program import REFERENCES, Reference, reference_step, uniform_start

NUM_STEPS = 20
INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.03), step_size=0.01, num_steps=4)

# Losses [20] and the student's logits on new images.
Outcome = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor], Tensor]


def setting(name: str) -> tuple[Reference, InnerConfig]:
    """Returns the restatement of a method, and the inner settings with its start.

    TRADES' own start is so close to x_natural that its kl and the sign of its gradient are rounding errors; LBGAT
    searches alike.
    """
    if methods.get(name).objective != methods.get("trades").objective:
        return REFERENCES[name], INNER
    return replace(REFERENCES[name], start=uniform_start), replace(INNER, start="uniform")


def student_and_teacher() -> tuple[nn.Module, nn.Module]:
    return smooth(tiny_network(1)), smooth(tiny_network(2, channels=8))


def optimizer_of(student: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)


def outcome_of(step: Step, student: nn.Module) -> Outcome:
    losses = []
    for seed in range(NUM_STEPS):
        torch.manual_seed(seed)
        losses.append(step(*images_and_labels(seed=seed)))
    with torch.no_grad():
        return torch.stack(losses), student.eval()(images_and_labels(seed=1000)[0])


def distilled(name: str) -> Outcome:
    """Trains by Distiller with the loaded operations."""
    reference, inner = setting(name)
    student, teacher = student_and_teacher()
    method = methods.get(name, **reference.options)
    distiller = Distiller(student, teacher, method=method, inner=inner, optimizer=optimizer_of(student))

    def step(x_natural: Tensor, labels: Tensor) -> Tensor:
        return distiller.step(x_natural, labels).loss

    return outcome_of(step, student)


@pytest.fixture(scope="module")
def by_reference_operations(tmp_path_factory) -> dict[str, Outcome]:
    """Outcome of distilled() per method, in a process without kernels."""
    file = tmp_path_factory.mktemp("outcomes") / "outcomes.pt"
    program = (
        "import torch, test_twenty_steps as t; "
        f"torch.save({{name: t.distilled(name) for name in t.methods.METHODS}}, {str(file)!r})"
    )
    folders = [str(folder) for folder in Path(__file__).parents[:3]]  # of this module, its helpers, and bench
    environment = {**os.environ, "FASTADAAD_KERNELS": "reference", "PYTHONPATH": os.pathsep.join(folders)}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    return torch.load(file)


def assert_same_outcome(outcome: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(outcome[0], expected[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(outcome[1], expected[1], rtol=0, atol=1e-3 * expected[1].std().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.METHODS)
def test_the_kernels_train_the_student_that_the_reference_operations_train(name, by_reference_operations):
    assert all(row.backend == "c++" for row in ops.report() if row.device == "cpu")
    assert_same_outcome(distilled(name), by_reference_operations[name])


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_kernels_train_the_student_that_the_plain_restatement_trains(name):
    outcome = distilled(name)
    reference, inner = setting(name)
    student, teacher = student_and_teacher()
    optimizer = optimizer_of(student)

    def step(x_natural: Tensor, labels: Tensor) -> Tensor:
        return reference_step(reference, student, teacher, optimizer, x_natural, labels, inner=inner)

    assert_same_outcome(outcome_of(step, student), outcome)
