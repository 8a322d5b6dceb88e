"""Distiller.state_dict: a training that resumes in a new process equals an uninterrupted one."""

import copy
import json

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.inner.teacher_error import TeacherError
from fastadaad.training import distiller

INNER = InnerConfig(num_steps=6)
NUM_STEPS, INTERRUPTED = 12, 5
SETTINGS = {
    "adaptive policy": {"teacher_policy": TeacherPolicy(kind="refreshed")},
    "fp16": {"precision": PrecisionConfig(student="fp16")},
    "skip": {"on_nonfinite": "skip"},
}


def training(student: nn.Module, **settings) -> Distiller:
    _, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, fused=True)
    return Distiller(student, teacher, inner=INNER, optimizer=optimizer, **settings)


def train(each: Distiller, steps: range, generator: torch.Generator) -> list[Tensor]:
    """Returns the losses; one batch holds NaN if the distiller skips."""
    losses = []
    for step in steps:
        x_natural, labels = images_and_labels(seed=step)
        if step == INTERRUPTED - 1 and each.on_nonfinite == "skip":
            x_natural[0] = torch.nan
        losses.append(each.step(x_natural, labels, generator=generator).loss)
    return losses


def through_json(state: dict) -> dict:
    """Converts numbers to JSON and back, and copies tensors."""
    if isinstance(state, dict):
        return {name: through_json(value) for name, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else json.loads(json.dumps(state))


@pytest.fixture(autouse=True)
def adapt_often(monkeypatch):
    """Adapts right after the interruption too, from errors before it."""
    monkeypatch.setattr(distiller, "ADAPT_EVERY", 3)


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_in_a_new_distiller_continue_bitwise(name):
    student, _ = student_and_teacher()
    other_student, _ = student_and_teacher()
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    whole = training(student, **SETTINGS[name])
    first = training(other_student, **SETTINGS[name])
    for each in (whole, first):
        each.maximizer.query_interval = 1  # the error is 0, and the policy queries less and less often
        if name == "fp16":
            each.scaler.set_growth_interval(4)  # the scale grows after the interruption too, counting steps before it
    losses = train(whole, range(NUM_STEPS), generators[0])
    train(first, range(INTERRUPTED), generators[1])
    if name == "adaptive policy":
        assert 1 < first.maximizer.query_interval < whole.maximizer.query_interval
        assert first._teacher_error.sums[-1] > 0
    second = training(copy.deepcopy(other_student), **SETTINGS[name])
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.load_state_dict(through_json(first.state_dict()))
    resumed = train(second, range(INTERRUPTED, NUM_STEPS), generators[1])
    assert all(map(torch.equal, resumed, losses[INTERRUPTED:]))
    for tensor, wanted in zip(second.student.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(tensor, wanted)
    assert_same_state(second.state_dict(), whole.state_dict())
    assert second.read_skipped() == (name == "skip")


def assert_same_state(state: dict, wanted: dict) -> None:
    assert state.keys() == wanted.keys()
    for name, value in state.items():
        assert torch.equal(value, wanted[name]) if isinstance(value, Tensor) else value == wanted[name], name


def test_each_item_of_the_state_is_restored():
    """Every value differs from a new distiller's."""
    planted = {
        "num_steps": 41,
        "query_interval": 2,
        "teacher_error": {"logit_error": 0.1, "kl_error": 0.2, "top_class_differs": 0.3, "query_interval": 4},
        "teacher_error_sums": torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        "nonfinite_counts": torch.tensor([41, 0, 0, 0, 0, 0, 0, 0]),
        "spot_check_sums": torch.tensor([3.0, 4.0]),
        "policy_share": 0.9,
        "scaler": {
            "scale": 512.0,
            "growth_factor": 3.0,
            "backoff_factor": 0.25,
            "growth_interval": 77,
            "_growth_tracker": 5,
        },
    }
    settings = {"teacher_policy": TeacherPolicy(kind="refreshed"), "precision": PrecisionConfig(student="fp16")}
    each = training(student_and_teacher()[0], **settings)
    fresh = each.state_dict()
    assert fresh.keys() == planted.keys()
    for name, value in planted.items():
        assert not torch.equal(value, fresh[name]) if isinstance(value, Tensor) else value != fresh[name], name
    sums, counts = each._teacher_error.sums, each._nonfinite.counts
    each.load_state_dict(through_json(planted))
    assert_same_state(each.state_dict(), planted)
    assert each.teacher_error == TeacherError(**planted["teacher_error"])
    # A captured step holds their addresses.
    assert each._teacher_error.sums is sums
    assert each._nonfinite.counts is counts


def test_a_state_is_a_copy():
    each = training(student_and_teacher()[0], **SETTINGS["adaptive policy"])
    train(each, range(1), torch.Generator())
    state = each.state_dict()
    kept = through_json(state)
    train(each, range(1, 3), torch.Generator())
    assert_same_state(state, kept)
