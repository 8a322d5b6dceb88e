"""The table of methods, and each objective and loss against float64 autograd of the formula in its docstring."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from searches import pixel_gradient
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.inner.search import tape_vjp, traceable_vjp
from fastadaad.methods.losses import boosted_cross_entropy, kl_mean, kl_per_image
from fastadaad.methods.options import MethodOptions
from fastadaad.methods.saad import renyi_entropy
from fastadaad.methods.table import EVERY_ROW

NETWORKS = student_and_teacher()
X_NATURAL, LABELS = images_and_labels(batch_size=6)
X_ADV = (X_NATURAL + 0.1 * torch.randn(X_NATURAL.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)
B, N = len(LABELS), 5
ALL_METHODS = [*methods.METHODS, "adaad+igdm", "pgd-at+igdm"]


@dataclass(kw_only=True)
class Float64:
    """Logits of both networks in float64; n: at x_natural, a: at x_adv, o: at 2 x_natural - x_adv."""

    student: nn.Module
    teacher: nn.Module

    def __getattr__(self, name: str) -> Tensor:
        network, image = name
        x = {"n": X_NATURAL, "a": X_ADV, "o": 2 * X_NATURAL - X_ADV}[image].double()
        return self.student(x) if network == "s" else self.teacher(x)


def kl(student_logits: Tensor, teacher_logits: Tensor, tau: float = 1.0) -> Tensor:
    """sum_j q_j (log q_j - log p_j) per image [B]."""
    p, q = (student_logits / tau).softmax(1), (teacher_logits / tau).softmax(1)
    return (q * (q.log() - p.log())).sum(1)


def ce(logits: Tensor) -> Tensor:
    return -logits.log_softmax(1)[torch.arange(len(LABELS)), LABELS].mean()


def trust(z: Float64, power: float) -> Tensor:
    return z.ta.softmax(1)[torch.arange(B), LABELS] ** power


def introspection(z: Float64, teacher_logits: Tensor, *, a=1.0, tau=30.0, b=0.1, weighted=False) -> Tensor:
    w = trust(z, b)
    teacher_term = tau**2 * kl(z.sa, teacher_logits, tau) * (w if weighted else 1)
    return (a * teacher_term + a * (1 - w) * kl(z.sa, z.sn)).mean() + (1 - a) * ce(z.sn)


def igdm(z: Float64) -> Tensor:
    return kl(z.sa - z.so, z.ta - z.to)


def saad(z: Float64, *, scale=5.0, beta=0.0, ramp=1.0, order=1.0) -> Tensor:
    q = z.ta.softmax(1)
    h = -(q * q.log()).sum(1) if order == 1 else (q**order).sum(1).log() / (1 - order)
    w = scale * (h - h.min())
    v = w / w.max()
    return (w * (kl(z.sa, z.ta) + ramp * igdm(z)) + beta * (1 - v) * kl(z.sn, z.tn)).mean()


def boosted_ce(logits: Tensor) -> Tensor:
    """-log p_y - log(1 - max_{k != y} p_k) per image [B], one image after the other."""
    probs, values = logits.softmax(1), []
    for p, y in zip(probs, LABELS.tolist(), strict=False):
        rival = max(p[k] for k in range(len(p)) if k != y)
        values.append(-p[y].log() - (1 - rival).log())
    return torch.stack(values)


def mart(z: Float64, weight: float) -> Tensor:
    p_y = z.sn.softmax(1)[torch.arange(B), LABELS]
    return (boosted_ce(z.sa) + weight * kl(z.sa, z.sn) * (1 - p_y)).mean()


def weighted_kl(z: Float64, target: Tensor, weight: float) -> Tensor:
    return (weight * kl(z.sa, target) + (1 - weight) * kl(z.sn, z.tn)).mean()


SOFT = {"teacher_weight": 0.3, "temperature": 4.0}
INTROSPECTIVE = {**SOFT, "introspection_begin": 2, "introspection_power": 0.5, "introspective_teacher_term": True}
GIVEN = {"a": 0.3, "tau": 4.0, "b": 0.5, "weighted": True}

# Method, options, epoch, and the formula of the loss.
LOSSES: list[tuple[str, dict, int, Callable[[Float64], Tensor]]] = [
    ("adaad", {}, 0, lambda z: kl(z.sa, z.ta).mean()),
    ("adaad", {"adversarial_weight": 0.7}, 0, lambda z: weighted_kl(z, z.ta, 0.7)),
    ("adaad", {"adversarial_weight": 0.0}, 0, lambda z: kl(z.sn, z.tn).mean()),
    ("adaad", {"kl_reduction": "mean"}, 0, lambda z: kl(z.sa, z.ta).mean() / N),
    ("adaiad", {}, 59, lambda z: 900 * kl(z.sa, z.ta, 30).mean()),
    ("adaiad", {}, 60, lambda z: introspection(z, z.ta)),
    ("adaiad", INTROSPECTIVE, 1, lambda z: 0.3 * 16 * kl(z.sa, z.ta, 4).mean() + 0.7 * ce(z.sn)),
    ("adaiad", INTROSPECTIVE, 2, lambda z: introspection(z, z.ta, **GIVEN)),
    ("pgd-at", {}, 0, lambda z: ce(z.sa)),
    ("trades", {}, 0, lambda z: ce(z.sn) + 6 * kl(z.sa, z.sn).mean()),
    (
        "trades",
        {"robustness_weight": 2.0, "kl_reduction": "mean"},
        0,
        lambda z: ce(z.sn) + 2 * kl(z.sa, z.sn).mean() / N,
    ),
    ("mart", {}, 0, lambda z: mart(z, 5.0)),
    ("mart", {"robustness_weight": 2.5}, 0, lambda z: mart(z, 2.5)),
    ("mart", {"robustness_weight": 0.0}, 0, lambda z: boosted_ce(z.sa).mean()),
    ("lbgat-fixed", {}, 0, lambda z: (z.sa - z.tn).square().mean() + 6 * kl(z.sa, z.sn).mean()),
    ("lbgat-fixed", {"robustness_weight": 0.0}, 0, lambda z: (z.sa - z.tn).square().sum() / (B * N)),
    ("ard", {}, 0, lambda z: 900 * kl(z.sa, z.tn, 30).mean()),
    ("ard", SOFT, 0, lambda z: 0.3 * 16 * kl(z.sa, z.tn, 4).mean() + 0.7 * ce(z.sn)),
    ("iad", {}, 59, lambda z: 900 * kl(z.sa, z.tn, 30).mean()),
    ("iad", {}, 60, lambda z: introspection(z, z.tn)),
    ("iad", INTROSPECTIVE, 2, lambda z: introspection(z, z.tn, **GIVEN)),
    ("rslad", {}, 0, lambda z: weighted_kl(z, z.tn, 5 / 6)),
    ("rslad", {"adversarial_weight": 1.0}, 0, lambda z: kl(z.sa, z.tn).mean()),
    ("akd", {}, 0, lambda z: 0.5 * 900 * kl(z.sa, z.ta, 30).mean() + 0.5 * ce(z.sa)),
    ("akd", SOFT, 0, lambda z: 0.3 * 16 * kl(z.sa, z.ta, 4).mean() + 0.7 * ce(z.sa)),
    ("saad", {}, 0, lambda z: saad(z, ramp=1 / 200)),
    ("saad", {"natural_weight": 0.5, "renyi_order": 2.0}, 99, lambda z: saad(z, beta=0.5, order=2.0, ramp=0.5)),
    ("saad", {"entropy_scale": 2.0, "igdm_weight": 3.0, "igdm_ramp_epochs": 0}, 0, lambda z: saad(z, scale=2, ramp=3)),
    ("adaad+igdm", {}, 99, lambda z: (kl(z.sa, z.ta) + 0.5 * igdm(z)).mean()),
    ("adaad+igdm", {"igdm_ramp_epochs": 10}, 30, lambda z: (kl(z.sa, z.ta) + igdm(z)).mean()),
    ("trades+igdm", {"igdm_weight": 10.0, "igdm_ramp_epochs": 0, "kl_reduction": "mean"}, 0,
     lambda z: ce(z.sn) + (6 * kl(z.sa, z.sn) + 10 * igdm(z)).mean() / N),
    ("pgd-at+igdm", {"igdm_ramp_epochs": 4}, 0, lambda z: ce(z.sa) + 0.25 * igdm(z).mean()),
]  # fmt: skip


def parameter_gradients(student: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(student.parameters())))


def restated(formula: Callable[[Float64], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Value and parameter gradient in float64 of `formula` on copies of the networks."""
    student, teacher = (copy.deepcopy(network).double() for network in NETWORKS)
    loss = formula(Float64(student=student, teacher=teacher.eval().requires_grad_(False)))
    return loss, parameter_gradients(student, loss)


@pytest.mark.parametrize(
    ("name", "options", "epoch", "formula"),
    LOSSES,
    ids=[f"{name} {options} {epoch}" for name, options, epoch, _ in LOSSES],
)
def test_an_outer_loss_and_its_parameter_gradient_equal_the_formula(name, options, epoch, formula):
    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    method = methods.get(name, **options)
    loss = method.outer_loss(student, teacher.eval(), X_NATURAL, X_ADV, LABELS, epoch)
    gradients = parameter_gradients(student, loss)
    expected_loss, expected_gradients = restated(formula)
    # The rounding of a softened kl, that of numbers near 1, is multiplied by tau^2.
    softened = method.options.temperature**2 if "temperature" in method.reads else 1.0
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6 + softened * 1e-7)
    scale = max(gradient.abs().max() for gradient in expected_gradients)
    # p - q is a difference of numbers near 1, however small the gradient is, and SAAD multiplies it by up to 5 log N.
    rounding = 5e-7 * (5 * math.log(N) if name == "saad" else 1.0)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * scale.item() + rounding)


def test_every_method_has_a_formula_here():
    assert {name for name, *_ in LOSSES} >= set(methods.METHODS)


def linear_teacher_at(x: Tensor, teacher: nn.Module) -> Tensor:
    """T(x_natural) with the label's logit moved along its gradient, by a Jacobian of the whole teacher."""
    x_natural = X_NATURAL.double()
    jacobian = torch.func.jacfwd(teacher)(x_natural)  # [B, N, B, C, H, W]
    logits = teacher(x_natural).detach().clone()
    for i, label in enumerate(LABELS.tolist()):
        logits[i, label] = logits[i, label] + (jacobian[i, label, i].detach() * (x[i] - x_natural[i])).sum()
    return logits


# Value that the inner loop of a method maximises at x, in float64, with both networks in eval mode.
INNER_VALUES: dict[str, Callable[[Tensor, nn.Module, nn.Module], Tensor]] = {
    "kl to the teacher": lambda x, s, t: kl(s(x), t(x)).sum(),
    "kl to the teacher at x_natural": lambda x, s, t: kl(s(x), t(X_NATURAL.double()).detach()).sum(),
    "kl to the student at x_natural": lambda x, s, t: kl(s(x), s(X_NATURAL.double()).detach()).sum(),
    "cross-entropy": lambda x, s, t: B * ce(s(x)),
    "kl to a linear teacher": lambda x, s, t: kl(s(x), linear_teacher_at(x, t)).sum(),
}
MAXIMISED_BY = {
    "kl to the teacher": ("adaad", "adaiad", "adaad+igdm"),
    "kl to the teacher at x_natural": ("rslad",),
    "kl to the student at x_natural": ("trades", "lbgat-fixed"),
    "cross-entropy": ("pgd-at", "mart", "ard", "iad", "akd", "pgd-at+igdm"),
    "kl to a linear teacher": ("saad",),
}


@pytest.mark.parametrize("vjp", [tape_vjp, traceable_vjp])
@pytest.mark.parametrize(("value", "name"), [(value, name) for value, names in MAXIMISED_BY.items() for name in names])
def test_the_pixel_gradient_of_an_inner_objective_is_that_of_its_formula(value, name, vjp):
    student, teacher = (copy.deepcopy(network).eval().requires_grad_(False) for network in NETWORKS)
    method = methods.get(name).resolved()
    with torch.no_grad():
        target = method.objective.fixed_target(student, teacher, X_NATURAL, LABELS)
    networks = (student, teacher) if method.through_teacher else (student,)
    gradient = pixel_gradient(vjp, networks, method.objective, X_ADV, target)

    x = X_ADV.double().requires_grad_()
    (expected,) = torch.autograd.grad(INNER_VALUES[value](x, student.double(), teacher.double()), x)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_every_method_has_an_inner_formula_here():
    assert {name for names in MAXIMISED_BY.values() for name in names} == set(ALL_METHODS)


@pytest.mark.parametrize("name", ALL_METHODS)
def test_a_method_reads_the_options_that_its_row_names_and_no_others(name):
    seen = set()

    class Recorder(MethodOptions):
        def __getattribute__(self, attribute: str):
            seen.add(attribute)
            return super().__getattribute__(attribute)

    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    read = set()
    fractions = {"adversarial_weight": 0.5, "teacher_weight": 0.5, "natural_weight": 0.5}
    for changes in ({}, fractions, {"robustness_weight": 0.0}):
        options = Recorder(**changes)
        seen.clear()  # forget the reads of the check of values
        for epoch in (0, 100):
            method = replace(methods.get(name), options=options)
            method.outer_loss(student, teacher.eval(), X_NATURAL, X_ADV, LABELS, epoch)
        read |= seen
    in_loss = read & {field.name for field in fields(MethodOptions)}
    assert in_loss | set(EVERY_ROW) == set(methods.get(name).reads)


def test_an_outer_loss_gives_the_teacher_no_gradient_and_skips_unused_passes():
    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    calls = []
    teacher.eval().register_forward_hook(lambda module, inputs, output: calls.append(inputs[0]))
    methods.get("adaad").outer_loss(student, teacher, X_NATURAL, X_ADV).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert [id(x) for x in calls] == [id(X_ADV)]  # at weight 1 the clean pass of the teacher would be multiplied by 0


@pytest.mark.parametrize("clean_statistics", [True, False])
def test_clean_statistics_change_running_statistics_and_nothing_else(clean_statistics):
    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    method = methods.get("adaad", clean_statistics=clean_statistics)
    loss = method.outer_loss(student, teacher.eval(), X_NATURAL, X_ADV)
    gradients = parameter_gradients(student, loss)

    plain = copy.deepcopy(NETWORKS[0])
    if clean_statistics:
        plain(X_NATURAL)  # first clean, then adversarial: the order of the authors' program
    logits = plain(X_ADV)
    expected = F.kl_div(logits.log_softmax(1), teacher(X_ADV).detach().softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients, parameter_gradients(plain, expected), rtol=1e-3, atol=1e-5)
    for (name, buffer), expected in zip(student.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, expected), name
    assert student[1].num_batches_tracked == NETWORKS[0][1].num_batches_tracked + (2 if clean_statistics else 1)


def test_the_rows_are_those_of_the_papers():
    rows = {row.name: (row.start, row.needs_teacher, row.needs_labels) for row in methods.METHODS.values()}
    assert rows == {
        "adaad": ("gaussian", True, False),
        "adaiad": ("gaussian", True, True),
        "pgd-at": ("uniform", False, True),
        "trades": ("gaussian", False, True),
        "mart": ("gaussian", False, True),
        "lbgat-fixed": ("gaussian", True, False),
        "ard": ("uniform", True, True),
        "iad": ("uniform", True, True),
        "rslad": ("gaussian", True, False),
        "akd": ("uniform", True, True),
        "saad": ("gaussian", True, True),
    }


def test_igdm_makes_a_row_of_any_row():
    added = methods.get("pgd-at+igdm", igdm_weight=10.0)
    assert (added.name, added.needs_teacher, added.objective) == ("pgd-at+igdm", True, methods.get("pgd-at").objective)
    assert added.options.igdm_weight == 10.0
    assert not methods.get("adaad+igdm").needs_labels
    with pytest.raises(ValueError, match="method saad has IGDM's term already"):
        methods.get("saad+igdm")


def test_get_changes_options_of_a_copy_and_refuses_unknown_ones():
    changed = methods.get("adaad", adversarial_weight=0.5, clean_statistics=False)
    assert (changed.options.adversarial_weight, changed.options.clean_statistics) == (0.5, False)
    assert methods.get("adaad").options.adversarial_weight == 1.0
    with pytest.raises(ValueError, match=r"trade.: did you mean trades\?"):
        methods.get("trade")
    for unknown in ("abacus", "adaad+swa", "adaad+", "+igdm"):
        with pytest.raises(ValueError, match=rf"unknown method '{re.escape(unknown)}': choose one of adaad, adaiad"):
            methods.get(unknown)
    with pytest.raises(ValueError, match=r"method adaad has no option 'beta': its options are adversarial_weight, kl_"):
        methods.get("adaad", beta=6)
    with pytest.raises(ValueError, match=r"pgd-at has no option 'temperature': its options are statistics, loss_scale"):
        methods.get("pgd-at", temperature=4)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("adversarial_weight", 1.1, r"must lie in \[0, 1\]"),
        ("teacher_weight", -0.1, r"must lie in \[0, 1\]"),
        ("robustness_weight", -1.0, "must be 0 or more"),
        ("introspection_begin", -1, "must be 0 or more"),
        ("igdm_ramp_epochs", -1, "must be 0 or more"),
        ("temperature", 0.0, "must be positive"),
        ("renyi_order", 0.0, "must be positive"),
        ("entropy_scale", 0.0, "must be positive"),
        ("kl_reduction", "sum", "choose batchmean or mean"),
    ],
)
def test_an_invalid_option_is_refused(option, value, words):
    with pytest.raises(ValueError, match=f"{option} is .*{words}"):
        MethodOptions(**{option: value})


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 7.0])
def test_renyi_entropy_of_known_distributions(order):
    quarter = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]).log()
    torch.testing.assert_close(renyi_entropy(quarter, order), torch.tensor([4.0, 1.0]).log(), rtol=1e-6, atol=1e-6)
    logits = 3 * torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    near = (renyi_entropy(logits, order - 1e-3), renyi_entropy(logits, order), renyi_entropy(logits, order + 1e-3))
    assert (near[0] > near[1]).all()  # it falls with the order, through order 1 too
    assert (near[1] > near[2]).all()


def test_a_missing_teacher_or_missing_labels_are_named():
    student, teacher = NETWORKS
    with pytest.raises(ValueError, match="teacher is None: method adaad needs one"):
        methods.get("adaad").outer_loss(student, None, X_NATURAL, X_ADV)
    with pytest.raises(ValueError, match="labels are missing"):
        methods.get("pgd-at").outer_loss(student, teacher, X_NATURAL, X_ADV)


@pytest.mark.parametrize("gap", [0.01, 1.0, 100.0])  # far apart, the terms of close networks would overflow
def test_kl_and_its_gradients_keep_their_digits_at_a_large_temperature(gap):
    student_logits, change = 3 * torch.randn(2, 50, 10, generator=torch.Generator().manual_seed(4))
    logits = [student_logits, student_logits + gap * change]
    results = []
    for dtype, loss in ((torch.float32, kl_per_image), (torch.float64, kl)):
        pair = [tensor.detach().to(dtype).requires_grad_() for tensor in logits]
        values = loss(*pair, 30.0)
        results.append([values, *torch.autograd.grad(values.sum(), pair)])
    for name, found, exact in zip(("kl", "student", "teacher"), *results, strict=True):
        relative = (found.double() - exact).abs().sum() / exact.abs().sum()
        assert relative < 1e-4, f"{name}: {relative:.1e}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_boosted_cross_entropy_keeps_its_gradient_where_a_probability_rounds_to_one(dtype):
    """Rows: the label certain, a rival certain by ever larger margins, two rivals level, and a masked class."""
    rows = [[30, 0, 1, 2, 3], [0, 12, 1, 2, 3], [0, 25, 1, 2, 3], [1, 4, 4, 0, 2], [2, 5, 1, 0, -torch.inf]]
    logits = torch.tensor(rows, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.tensor([0, 0, 2, 0, 1])
    (gradient,) = torch.autograd.grad(boosted_cross_entropy(logits, labels).sum(), logits)
    assert (1 - logits.float().softmax(1).amax(1)).tolist()[2] == 0.0  # the plain formula has log 0 here

    exact = logits.detach().double().requires_grad_()
    probs, expected = exact.softmax(1), []
    for p, y in zip(probs, labels.tolist(), strict=True):
        rival = max((p[k] for k in range(5) if k != y), key=Tensor.item)
        expected.append(-p[y].log() - torch.log1p(-rival))
    (expected_gradient,) = torch.autograd.grad(sum(expected), exact)
    values = boosted_cross_entropy(logits, labels).double()
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-6, atol=1e-6)
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=4 * tolerance, atol=4 * tolerance)


def test_a_class_that_both_networks_mask_counts_as_absent():
    student_logits, teacher_logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(3))
    student_logits[:, 2] = teacher_logits[:, 2] = -torch.inf
    student_logits.requires_grad_()
    loss = kl_mean(student_logits, teacher_logits, "batchmean")
    (gradient,) = torch.autograd.grad(loss, student_logits)
    kept = [0, 1, 3, 4]
    without = student_logits.detach()[:, kept].double().requires_grad_()
    expected = kl(without, teacher_logits[:, kept].double()).mean()
    (expected_gradient,) = torch.autograd.grad(expected, without)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient[:, kept].double(), expected_gradient, rtol=1e-5, atol=1e-7)
    assert (gradient[:, 2] == 0).all()
