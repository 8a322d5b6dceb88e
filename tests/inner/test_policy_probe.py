"""The probe of a teacher policy: its kl against a plain loop's, and a policy that fails asks more often, at once."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from networks import images_and_labels, smooth, tiny_network
from plain import inner_loop, kl_to_teacher, mean_kl
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.inner import policy_probe
from fastadaad.inner.policy_probe import kl_sums

EPSILON, STEP_SIZE, NUM_STEPS = 32 / 255, 8 / 255, 10
INNER = InnerConfig(
    threat_model=ThreatModel(epsilon=EPSILON), step_size=STEP_SIZE, num_steps=NUM_STEPS, start="natural"
)
SEARCH = {"norm": "linf", "epsilon": EPSILON, "step_size": STEP_SIZE, "num_steps": NUM_STEPS}


def almost_the_teacher(teacher: nn.Module) -> nn.Module:
    """Student that agrees with its teacher up to small noise, as at the end of a long training."""
    student, generator = copy.deepcopy(teacher), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return student


def distiller_of(
    policy: str, make_student=almost_the_teacher, *, learning_rate: float = 1e-6, inner: InnerConfig = INNER
) -> Distiller:
    teacher = smooth(tiny_network(2, channels=8)).eval()
    student = make_student(teacher)
    optimizer = torch.optim.SGD(student.parameters(), lr=learning_rate)
    return Distiller(student, teacher, inner=inner, optimizer=optimizer, teacher_policy=policy, layout="contiguous")


@pytest.fixture
def at_every_step(monkeypatch):
    monkeypatch.setattr(policy_probe, "INTERVAL", 1)


def test_both_sums_are_those_of_a_plain_loop():
    distiller, (x, labels) = distiller_of("refreshed(every=10)"), images_and_labels()
    student, teacher = distiller.student.eval(), distiller.teacher
    x_adv = distiller.maximizer(x, labels)
    exact = inner_loop(kl_to_teacher(student, teacher), x, x, **SEARCH)
    reached, best = kl_sums(distiller.maximizer, x, labels).tolist()
    assert reached == pytest.approx(len(x) * mean_kl(student, teacher, x_adv), rel=1e-3)
    assert best == pytest.approx(len(x) * mean_kl(student, teacher, exact), rel=1e-3)
    assert reached < 0.8 * best  # the stale gradient finds less in this student


@pytest.mark.usefixtures("at_every_step")
def test_the_student_is_probed_before_it_learns_from_the_batch():
    distiller, (x, labels) = distiller_of("refreshed(every=10)", learning_rate=0.5), images_and_labels()
    shares = []
    for _ in range(2):
        distiller.maximizer.query_interval = 10  # the probe shortens it
        reached, exact = kl_sums(distiller.maximizer, x, labels).tolist()
        shares.append(reached / exact)
        distiller.step(x, labels)
        assert distiller.policy_share == pytest.approx(shares[-1], rel=1e-4)
    assert abs(shares[1] - shares[0]) > 0.05  # the update changes the share


@pytest.mark.usefixtures("at_every_step")
def test_a_policy_that_asks_in_every_step_reaches_all_of_the_exact_kl():
    distiller, (x, labels) = distiller_of("directional(every=1)", learning_rate=0.5), images_and_labels()
    for _ in range(2):
        distiller.step(x, labels)
        assert distiller.policy_share == pytest.approx(1.0, abs=1e-3)


def test_a_probe_leaves_the_statistics_of_a_student_in_train_mode(monkeypatch):
    """Each step of such a search is a pass of batch-norm in train mode, and changes its running statistics."""
    inner, (x, labels), statistics = replace(INNER, student_eval=False), images_and_labels(), []
    for interval in (1, 100):
        monkeypatch.setattr(policy_probe, "INTERVAL", interval)
        distiller = distiller_of("refreshed(every=2)", inner=inner)
        distiller.step(x, labels)
        statistics.append([buffer.clone() for buffer in distiller.student.buffers()])
    assert statistics[0]
    for probed, unprobed in zip(*statistics, strict=True):
        torch.testing.assert_close(probed, unprobed, rtol=0, atol=0)


@pytest.mark.usefixtures("at_every_step")
def test_a_policy_that_reaches_too_little_warns_at_once_and_queries_more_often_until_it_reaches_enough():
    distiller, (x, labels) = distiller_of("refreshed(every=10)"), images_and_labels()
    intervals, shares = [10], []
    for _ in range(8):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            distiller.step(x, labels)
        shares.append(distiller.policy_share)
        intervals.append(distiller.maximizer.query_interval)
        messages = [str(warning.message) for warning in caught if "teacher policy" in str(warning.message)]
        falls_short = shares[-1] < 0.8
        assert len(messages) == falls_short
        assert (intervals[-1] < intervals[-2]) == falls_short
        if falls_short:
            assert f"every {intervals[-2]} steps, reaches {shares[-1]:.0%} of the kl of an exact search" in messages[0]
            assert messages[0].endswith(f"it queries every {intervals[-1]} steps from now on")
    assert shares[0] < 0.8 <= shares[-1]
    assert intervals[-1] == intervals[-2]


@pytest.mark.usefixtures("at_every_step")
def test_a_policy_that_has_no_shorter_interval_names_exact(monkeypatch):
    monkeypatch.setattr(policy_probe, "LEAST_SHARE", 2.0)
    distiller, (x, labels) = distiller_of("linearized(top=1,every=1)"), images_and_labels()
    with pytest.warns(UserWarning, match=r"every 1 steps, reaches .*: set teacher.policy=exact"):
        distiller.step(x, labels)
    assert distiller.maximizer.query_interval == 1


def test_the_probe_is_made_at_intervals_and_changes_no_random_number(monkeypatch):
    x, labels = images_and_labels()
    losses, shares = [], []
    for interval in (3, 100):
        monkeypatch.setattr(policy_probe, "INTERVAL", interval)
        distiller = distiller_of("refreshed(every=2)", make_student=lambda teacher: tiny_network(1))
        generator = torch.Generator().manual_seed(0)
        losses.append([])
        for _ in range(4):
            losses[-1].append(distiller.step(x, labels, generator=generator).loss.item())
            shares.append(distiller.policy_share)
    assert losses[0] == losses[1]
    assert shares[:2] == [None] * 2
    assert 0.8 < shares[2] == shares[3] < 1.2
    assert shares[4:] == [None] * 4


@pytest.mark.usefixtures("at_every_step")
def test_exact_is_not_probed():
    distiller, (x, labels) = distiller_of("exact"), images_and_labels()
    distiller.step(x, labels)
    assert distiller.policy_share is None
