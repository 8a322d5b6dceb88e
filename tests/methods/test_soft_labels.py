"""Label distributions [B, N] in losses and searches, against float64 autograd of their formulas."""

import copy
from collections.abc import Callable

import pytest
import torch
from networks import NUM_CLASSES, images_and_labels, student_and_teacher
from searches import pixel_gradient
from torch import Tensor

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, InnerMaximizer, methods
from fastadaad.inner.search import tape_vjp
from fastadaad.methods.losses import cross_entropy

NETWORKS = student_and_teacher()
X_NATURAL, LABELS = images_and_labels(batch_size=6)
X_ADV = (X_NATURAL + 0.1 * torch.randn(X_NATURAL.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
# The last one is one-hot: its zeros are masked classes of the search's target.
SOFT = torch.rand(6, NUM_CLASSES, generator=torch.Generator().manual_seed(6)) ** 4
SOFT = torch.cat([SOFT[:-1] / SOFT[:-1].sum(1, keepdim=True), torch.eye(NUM_CLASSES)[2:3]])
TAKE_THEM = ["pgd-at", "trades", "ard", "akd", "pgd-at+igdm"]
REFUSE_THEM = ["iad", "adaiad", "saad", "mart", "iad+igdm"]
INNER = InnerConfig(num_steps=2, start="natural")


def kl(student_logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    p, q = (student_logits / tau).softmax(1), (teacher_logits / tau).softmax(1)
    return (q * (q.log() - p.log())).sum(1).mean()


def ce(logits: Tensor) -> Tensor:
    return -(SOFT.double() * logits.log_softmax(1)).sum(1).mean()


# (S(x_natural), S(x_adv), T(x_natural), T(x_adv)) in float64 -> the loss.
LOSSES: dict[str, tuple[dict, Callable[..., Tensor]]] = {
    "pgd-at": ({}, lambda sn, sa, tn, ta: ce(sa)),
    "trades": ({}, lambda sn, sa, tn, ta: ce(sn) + 6 * kl(sa, sn)),
    "ard": ({"teacher_weight": 0.3, "temperature": 4.0}, lambda sn, sa, tn, ta: 4.8 * kl(sa, tn, 4) + 0.7 * ce(sn)),
    "akd": ({"teacher_weight": 0.3, "temperature": 4.0}, lambda sn, sa, tn, ta: 4.8 * kl(sa, ta, 4) + 0.7 * ce(sa)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_an_outer_loss_and_its_gradient_equal_the_formula(name):
    options, formula = LOSSES[name]
    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    loss = methods.get(name, **options).outer_loss(student, teacher.eval(), X_NATURAL, X_ADV, SOFT)
    gradients = torch.autograd.grad(loss, list(student.parameters()))
    wanted_student, wanted_teacher = (copy.deepcopy(network).double() for network in NETWORKS)
    wanted_teacher.eval().requires_grad_(False)
    points = (X_NATURAL.double(), X_ADV.double())
    wanted = formula(*map(wanted_student, points), *map(wanted_teacher, points))
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(wanted, list(wanted_student.parameters()))
    scale = max(gradient.abs().max().item() for gradient in expected)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.parametrize("name", ["pgd-at", "ard", "akd"])
def test_the_search_maximises_the_cross_entropy_to_the_distributions(name):
    student, _ = (copy.deepcopy(network).eval().requires_grad_(False) for network in NETWORKS)
    objective = methods.get(name).resolved().objective
    target = objective.fixed_target(student, None, X_NATURAL, SOFT)
    gradient = pixel_gradient(tape_vjp, (student,), objective, X_ADV, target)
    value, _ = objective.logit_gradients((student(X_ADV),), target)

    x = X_ADV.double().requires_grad_()
    wanted = -(SOFT.double() * student.double()(x).log_softmax(1)).sum(1)
    (expected,) = torch.autograd.grad(wanted.sum(), x)
    torch.testing.assert_close(value.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", TAKE_THEM)
def test_the_loss_of_a_mixture_is_the_mixture_of_losses(name):
    def loss(labels: Tensor) -> float:
        student, teacher = (copy.deepcopy(network).eval() for network in NETWORKS)
        method = methods.get(name)
        if "teacher_weight" in method.reads:
            method = method.with_options(teacher_weight=0.5)
        return method.outer_loss(student, teacher, X_NATURAL, X_ADV, labels).item()

    others = (LABELS + 2) % NUM_CLASSES
    mixed = 0.3 * torch.eye(NUM_CLASSES)[LABELS] + 0.7 * torch.eye(NUM_CLASSES)[others]
    assert loss(mixed) == pytest.approx(0.3 * loss(LABELS) + 0.7 * loss(others), rel=1e-5)
    assert loss(LABELS) != pytest.approx(loss(others), rel=1e-3)


COMPILED = {"mode": "compiled", "compile_options": {"backend": "aot_eager"}}


@pytest.mark.parametrize(
    "settings",
    [{}, {"micro_batch": 4}, {"awp_gamma": 0.01}, pytest.param(COMPILED, marks=pytest.mark.slow)],
    ids=str,
)
@pytest.mark.parametrize("name", ["pgd-at", "ard"])
def test_one_hot_distributions_train_as_class_numbers(name, settings):
    students = []
    for labels in (LABELS, torch.eye(NUM_CLASSES, dtype=torch.float64)[LABELS]):
        student, teacher = student_and_teacher()
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        distiller = Distiller(student, teacher, method=name, inner=INNER, optimizer=optimizer, **settings)
        for _ in range(2):
            distiller.step(X_NATURAL, labels)
        distiller.check_finite()
        students.append(student)
    for parameter, wanted in zip(*(student.parameters() for student in students), strict=True):
        torch.testing.assert_close(parameter, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", REFUSE_THEM)
def test_a_method_that_needs_the_class_refuses_them_in_one_line(name):
    words = rf"^labels are distributions \[B, N\]: method {name.replace('+', '.')} needs the class of each image, give"
    student, teacher = student_and_teacher()
    with pytest.raises(ValueError, match=words):
        methods.get(name).outer_loss(student, teacher.eval(), X_NATURAL, X_ADV, SOFT)
    with pytest.raises(ValueError, match=words):
        InnerMaximizer(student, teacher, method=name)(X_NATURAL, SOFT)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    with pytest.raises(ValueError, match=words):
        Distiller(student, teacher, method=name, optimizer=optimizer).step(X_NATURAL, SOFT)


def test_every_row_with_labels_is_tested():
    rows = [name for name, method in methods.METHODS.items() if method.needs_labels]
    assert sorted(rows) == sorted(name for name in TAKE_THEM + REFUSE_THEM if "+" not in name)
    assert all(methods.get(name).takes_soft_labels for name in TAKE_THEM)


def test_a_method_without_labels_ignores_them():
    student, teacher = student_and_teacher()
    InnerMaximizer(student, teacher, method="adaad", inner=INNER)(X_NATURAL, SOFT)


def test_a_class_that_the_student_masks_adds_nothing_at_label_0():
    logits = torch.tensor([[1.0, -torch.inf, 0.5], [0.3, 0.2, 0.1]], requires_grad=True)
    labels = torch.tensor([[0.4, 0.0, 0.6], [0.2, 0.3, 0.5]])
    cross_entropy(logits, labels).backward()
    first = torch.tensor([0.4, 0.6], dtype=torch.float64) @ torch.tensor([1.0, 0.5], dtype=torch.float64).log_softmax(0)
    second = labels[1].double() @ logits[1].detach().double().log_softmax(0)
    assert cross_entropy(logits, labels).item() == pytest.approx(-(first + second).item() / 2, rel=1e-6)
    assert logits.grad.isfinite().all()


def test_only_the_first_step_waits_for_the_values_of_the_distributions():
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, fused=True)
    distiller = Distiller(student, teacher, method="pgd-at", inner=INNER, optimizer=optimizer)
    waits = []
    for _ in range(2):
        with HostSyncWatch() as watch:
            distiller.step(X_NATURAL, SOFT)
        waits.append(len(watch.seen))
    assert waits[0] > 0
    assert waits[1] == 0
