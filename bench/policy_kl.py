"""Fraction of the exact search's kl reached by each teacher policy: `python -m bench policies --kl STUDENT`."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from fastadaad import InnerMaximizer, ops
from fastadaad.config import TeacherPolicy
from fastadaad.inner.teacher_error import TeacherErrorMeter
from fastadaad.run_config import ModelConfig, RunConfig
from fastadaad.training.build import build_model, build_teacher
from fastadaad.training.data import training_data

BATCHES = 4
POLICIES = (
    *[f"refreshed(every={every})" for every in range(1, 11)],
    *[f"linearized(top={top},every={every})" for top in (1, 3) for every in (5, 10)],
)


def kl_rows(config: RunConfig, student: Path, radius: float) -> Iterator[dict[str, object]]:
    """Yields one row per policy, measured on BATCHES batches of test images.

    Args:
        config: Configuration of the run that trained the student.
        student: Weights of the trained student.
        radius: Multiple of the recipe's epsilon and step size.
    """
    device = torch.device("cpu")
    data = training_data(config, device)
    assert config.teacher is not None
    teacher = build_teacher(config.teacher, data, device).eval()
    network = build_model(ModelConfig(name=config.student.name, checkpoint=str(student)), data, device).eval()
    ball = replace(config.inner.threat_model, epsilon=radius * config.inner.threat_model.epsilon)
    inner = replace(config.inner, threat_model=ball, step_size=radius * config.inner.step_size)
    batches = [x_natural for x_natural, _ in data.test.epoch(0)][:BATCHES]
    exact = _reached(network, teacher, TeacherPolicy(), batches, inner)[0]
    for text in POLICIES:
        policy = TeacherPolicy.parse(text)
        kl, meter = _reached(network, teacher, policy, batches, inner)
        error = meter.read(policy.every or 1)
        assert error is not None
        yield {
            "student": config.student.name,
            "teacher": config.teacher.name,
            "epsilon": round(ball.epsilon, 4),
            "num_steps": inner.num_steps,
            "policy": text,
            "teacher_answers": -(-inner.num_steps // (policy.every or 1)),
            "kl_of_exact": round(kl / exact, 4),
            "kl_error": round(error.kl_error, 4),
            "top_class_differs": round(error.top_class_differs, 4),
            "num_images": sum(map(len, batches)),
        }


@torch.no_grad()
def _reached(student, teacher, policy, batches, inner) -> tuple[float, TeacherErrorMeter]:
    """Returns the sum of kl(S(x_adv), T(x_adv)) and the meter of the policy's error."""
    maximizer = InnerMaximizer(student, teacher, inner=inner, teacher_policy=policy)
    meter, kl = TeacherErrorMeter(policy, torch.device("cpu")), 0.0
    for seed, x_natural in enumerate(batches):
        found = maximizer.search(x_natural, generator=torch.Generator().manual_seed(seed))
        student_logits, teacher_logits = student(found.x_adv), teacher(found.x_adv)
        kl += ops.kl_grad(student_logits, teacher_logits)[0].sum().item()
        if found.teacher_logits_assumed is not None:
            meter.add(student_logits, teacher_logits, found.teacher_logits_assumed)
    return kl, meter
