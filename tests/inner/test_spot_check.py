"""The spot check sees what the folded copies do not: against a network whose forward reads a global variable."""

import copy
import warnings

import pytest
import torch
from networks import images_and_labels, tiny_network
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig
from fastadaad.inner import spot_check
from fastadaad.inner.spot_check import SpotCheck

INNER = InnerConfig(num_steps=2)
SIGN = {"value": 1.0}


class ReadsAGlobal(nn.Module):
    """Network that a dictionary outside of it turns upside down."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_network(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(SIGN["value"] * x)


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(SpotCheck, "is_due", lambda check, step: True)
    monkeypatch.setitem(SIGN, "value", 1.0)


def distiller_of(student: nn.Module, **settings) -> Distiller:
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    return Distiller(student, tiny_network(2, channels=8).eval(), inner=INNER, optimizer=optimizer, **settings)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_folded_copies_have_the_networks_own_signs(precision):
    distiller, (x, labels) = distiller_of(tiny_network(1), precision=precision), images_and_labels()
    for _ in range(2):
        distiller.step(x, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fraction = distiller.read_gradient_agreement()
    assert (0.99 if precision == "fp32" else 0.7) < fraction <= 1
    assert distiller.read_gradient_agreement() is None  # there was no check since


def test_a_change_that_no_copy_can_see_is_noticed_at_the_next_check():
    distiller, (x, labels) = distiller_of(ReadsAGlobal()), images_and_labels()
    distiller.step(x, labels)
    assert distiller.read_gradient_agreement() > 0.99
    SIGN["value"] = -1.0
    distiller.step(x, labels)
    with pytest.warns(UserWarning, match=r"own sign: the networks change in a way .* set fold=False"):
        assert distiller.read_gradient_agreement() < 0.9


def test_the_check_changes_nothing():
    students = [tiny_network(1) for _ in range(2)]
    x, labels = images_and_labels()
    losses = []
    for student, least in zip(students, (True, False), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SpotCheck, "is_due", lambda check, step, due=least: due)
            distiller = distiller_of(student)
            generator = torch.Generator().manual_seed(0)
            losses.append([distiller.step(x, labels, generator=generator).loss.item() for _ in range(3)])
    assert losses[0] == losses[1]
    for ours, theirs in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(ours, theirs)


def test_steps_are_drawn_alike_in_every_run(monkeypatch):
    monkeypatch.undo()
    check, again = (
        SpotCheck(copy.copy(distiller_of(tiny_network(1)).precision), torch.device("cpu")) for _ in range(2)
    )
    due = [step for step in range(20_000) if check.is_due(step)]
    assert due == [step for step in range(20_000) if again.is_due(step)]
    assert due[0] == 0
    assert 60 < len(due) < 140  # of 100 on average
    assert spot_check.INTERVAL == 200
