"""The measured error of a teacher policy against float64, the adaptation of its interval, and its warning."""

import warnings

import pytest
import torch
from networks import NUM_CLASSES, images_and_labels, tiny_network
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.config import TeacherPolicy
from fastadaad.inner.teacher_error import TeacherError, TeacherErrorMeter, adapted, intervals
from fastadaad.inner.teacher_policies import first_interval
from fastadaad.training import distiller as distiller_module

CPU = torch.device("cpu")
REFRESHED = TeacherPolicy(kind="refreshed")
USUAL_EPSILON = 16 / 255


def logits(seed: int, num_images: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(num_images, NUM_CLASSES, generator=torch.Generator().manual_seed(seed))


def kl64(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """sum_c q_c (log q_c - log p_c) [B] in float64."""
    log_p, log_q = student_logits.double().log_softmax(1), teacher_logits.double().log_softmax(1)
    return (log_q.exp() * (log_q - log_p)).sum(1)


def three_logits(seed: int, num_images: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the student, of the teacher, and what was assumed for the teacher's."""
    teacher_logits = logits(seed, num_images)
    return logits(seed + 100, num_images), teacher_logits, teacher_logits + logits(seed + 200, num_images, scale=0.8)


def test_the_errors_cover_all_images_since_the_last_read_however_they_were_batched():
    meter = TeacherErrorMeter(REFRESHED, CPU)
    batches = [three_logits(seed, num_images) for seed, num_images in ((1, 40), (2, 7), (3, 1))]
    for batch in batches:
        meter.add(*batch)
    error = meter.read(8)
    student_logits, teacher_logits, assumed = (torch.cat(parts) for parts in zip(*batches, strict=True))
    kl, assumed_kl = kl64(student_logits, teacher_logits), kl64(student_logits, assumed)
    logit_error = (assumed.double() - teacher_logits.double()).abs().mean().item()
    assert error.logit_error == pytest.approx(logit_error, rel=1e-5)
    assert error.kl_error == pytest.approx(((assumed_kl - kl).abs().mean() / kl.mean()).item(), rel=1e-4)
    differs = [int(a.max(0).indices != t.max(0).indices) for a, t in zip(assumed, teacher_logits, strict=True)]
    assert 0 < sum(differs) < 48
    assert error.top_class_differs == pytest.approx(sum(differs) / 48)
    assert error.query_interval == 8


def test_a_read_resets_the_sums_and_without_images_there_is_no_error():
    meter = TeacherErrorMeter(REFRESHED, CPU)
    assert meter.read(1) is None
    meter.add(*three_logits(1, 20))
    meter.read(1)
    assert meter.read(1) is None
    meter.add(*three_logits(1, 0))
    assert meter.read(1) is None
    fresh = TeacherErrorMeter(REFRESHED, CPU)
    for each in (meter, fresh):
        each.add(*three_logits(2, 20))
    assert meter.read(3) == fresh.read(3)


def test_what_is_right_has_no_error_and_adding_does_not_wait():
    meter = TeacherErrorMeter(REFRESHED, CPU)
    student_logits, teacher_logits, _ = three_logits(1, 20)
    with HostSyncWatch() as watch:
        meter.add(student_logits, teacher_logits, teacher_logits.clone())
        meter.add(student_logits, teacher_logits, teacher_logits.clone())
    assert watch.seen == []
    assert meter.read(5) == TeacherError(logit_error=0.0, kl_error=0.0, top_class_differs=0.0, query_interval=5)


def error_of(kl_error: float, query_interval: int) -> TeacherError:
    return TeacherError(logit_error=0.1, kl_error=kl_error, top_class_differs=0.0, query_interval=query_interval)


@pytest.mark.parametrize(
    ("num_steps", "choices"),
    [
        (1, [1]), (2, [2, 1]), (3, [3, 1]), (7, [7, 6, 3, 1]), (10, [10, 8, 4, 3, 1]),
        (20, [20, 16, 8, 6, 4, 1]),
    ],
)  # fmt: skip
def test_the_interval_goes_through_its_choices_one_at_a_time_and_stays_at_the_ends(num_steps, choices):
    assert intervals(num_steps) == choices
    interval, seen = choices[0], []
    for _ in range(len(choices) + 2):
        seen.append(interval)
        interval = adapted(error_of(0.3, interval), num_steps)
    assert seen == [*choices, choices[-1], choices[-1]]
    seen = []
    for _ in range(len(choices) + 2):
        seen.append(interval)
        interval = adapted(error_of(0.01, interval), num_steps)
    assert seen == [*reversed(choices), choices[0], choices[0]]
    for choice in choices:
        for tolerated in (0.05, 0.1, 0.2):
            assert adapted(error_of(tolerated, choice), num_steps) == choice


@pytest.mark.parametrize("num_steps", range(1, 40))
def test_the_choices_reach_from_every_step_to_once_in_a_search(num_steps):
    choices = intervals(num_steps)
    assert (choices[0], choices[-1]) == (num_steps, 1)
    assert choices == sorted(set(choices), reverse=True)


@pytest.mark.parametrize("interval", [5, 100])
def test_an_interval_outside_the_choices_goes_to_a_near_one(interval):
    assert adapted(error_of(0.1, interval), 10) == {5: 4, 100: 10}[interval]


def test_an_adaptive_policy_begins_with_one_query_per_search():
    assert first_interval(REFRESHED, 7) == 7
    assert first_interval(TeacherPolicy(kind="linearized", every=3), 7) == 3
    assert first_interval(TeacherPolicy(), 7) == 1


def alike() -> tuple[nn.Module, nn.Module]:
    """A student near its teacher, as after some training: the teacher then decides in which direction the kl grows."""
    student, teacher = tiny_network(2, channels=8), tiny_network(2, channels=8)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return student, teacher


def distiller(policy: str, epsilon: float, num_steps: int = 10) -> Distiller:
    student, teacher = alike()
    threat_model = ThreatModel(epsilon=epsilon)
    return Distiller(
        student,
        teacher,
        inner=InnerConfig(threat_model=threat_model, step_size=epsilon / 4, num_steps=num_steps, start="natural"),
        optimizer=torch.optim.SGD(student.parameters(), lr=0.001),
        teacher_policy=TeacherPolicy.parse(policy),
    )


@pytest.mark.parametrize("policy", ["linearized(top=3,every=10)", "linearized", "refreshed(every=10)"])
def test_an_outdated_teacher_warns_at_a_radius_several_times_too_large_and_not_at_the_usual_one(policy):
    usual, too_large = (distiller(policy, factor * USUAL_EPSILON) for factor in (1, 8))
    for each in (usual, too_large):
        for seed in range(3):
            each.step(*images_and_labels(32, seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usual.read_teacher_error().kl_error < 0.25
    with pytest.warns(UserWarning, match="of its top classes are wrong; query more often or use exact") as caught:
        assert too_large.read_teacher_error().kl_error > 0.5
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert str(too_large.maximizer.teacher_policy) in str(caught[0].message)


def test_the_error_of_a_distiller_is_that_of_its_last_search_at_x_adv():
    each = distiller("refreshed(every=10)", USUAL_EPSILON)
    student, teacher = alike()
    student.train()
    teacher.eval()
    x_natural, labels = images_and_labels(32)
    x_adv = each.step(x_natural, labels).x_adv
    error = each.read_teacher_error()
    assert error == each.teacher_error
    with torch.no_grad():
        student(x_natural)  # the clean pass, for the running statistics only
        expected_kl, assumed_kl = (kl64(student(x_adv), teacher(x)) for x in (x_adv, x_natural))
        logit_error = (teacher(x_adv) - teacher(x_natural)).abs().mean().item()
    assert error.logit_error == pytest.approx(logit_error, rel=1e-4)
    assert error.kl_error == pytest.approx(
        ((assumed_kl - expected_kl).abs().mean() / expected_kl.mean()).item(), rel=1e-3
    )
    assert each.read_teacher_error() is None
    assert each.teacher_error == error


def test_more_queries_make_the_error_smaller_and_the_exact_search_has_none():
    errors = []
    for policy in ("linearized(every=10)", "linearized(every=6)", "linearized(every=1)"):
        each = distiller(policy, 2 * USUAL_EPSILON)
        each.step(*images_and_labels(32))
        errors.append(each.read_teacher_error().kl_error)
    assert errors[0] > 1.5 * errors[1] > 3 * errors[2] > 0, errors
    exact = distiller("exact", USUAL_EPSILON)
    exact.step(*images_and_labels(32))
    assert exact.read_teacher_error() is None
    assert exact.teacher_error is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:teacher policy:UserWarning")
def test_an_adaptive_distiller_queries_more_often_if_the_error_is_large_and_less_often_if_it_is_small(monkeypatch):
    monkeypatch.setattr(distiller_module, "ADAPT_EVERY", 2)
    seen: dict[float, list[int]] = {}
    for factor, interval in ((8, 10), (0.05, 3)):
        each = distiller("linearized", factor * USUAL_EPSILON)
        each.maximizer.query_interval = interval
        seen[factor] = []
        for step in range(8):
            each.step(*images_and_labels(32, step))
            seen[factor].append(each.maximizer.query_interval)
    assert seen[8][:3] == [10, 8, 8]
    assert seen[0.05] == [3, 4, 4, 8, 8, 10, 10, 10]


def test_a_fixed_interval_stays_and_is_never_read_within_a_step(monkeypatch):
    monkeypatch.setattr(distiller_module, "ADAPT_EVERY", 1)
    each = distiller("refreshed(every=10)", 8 * USUAL_EPSILON)
    each.step(*images_and_labels())
    with HostSyncWatch() as watch:
        each.step(*images_and_labels())
    assert watch.seen == []
    assert each.maximizer.query_interval == 10
