"""The table of methods, and each objective and loss against float64 autograd of the formula in its docstring."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.method_options import MethodOptions
from fastadaad.outer_minimization import kl_mean

NETWORKS = student_and_teacher()
X_NATURAL, LABELS = images_and_labels(batch_size=6)
X_ADV = (X_NATURAL + 0.1 * torch.randn(X_NATURAL.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)


def kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """sum_j q_j (log q_j - log p_j) per image [B]."""
    p, q = student_logits.softmax(1), teacher_logits.softmax(1)
    return (q * (q.log() - p.log())).sum(1)


def parameter_gradients(student: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(student.parameters())))


def restated(formula, **options) -> tuple[Tensor, list[Tensor]]:
    """Value and parameter gradient in float64 of `formula(student, teacher)` of copies of the networks."""
    student, teacher = (copy.deepcopy(network).double() for network in NETWORKS)
    teacher.eval().requires_grad_(False)
    loss = formula(student, teacher, **options)
    return loss, parameter_gradients(student, loss)


def adaad(student: nn.Module, teacher: nn.Module, weight: float, divisor: int) -> Tensor:
    at_adv = kl(student(X_ADV.double()), teacher(X_ADV.double())).sum() / divisor
    at_natural = kl(student(X_NATURAL.double()), teacher(X_NATURAL.double())).sum() / divisor
    return weight * at_adv + (1 - weight) * at_natural


def pgd_at(student: nn.Module, teacher: nn.Module) -> Tensor:
    log_probs = student(X_ADV.double()).log_softmax(1)
    return -log_probs[torch.arange(len(LABELS)), LABELS].mean()


LOSSES = {
    "adaad": (methods.get("adaad"), lambda s, t: adaad(s, t, 1.0, 6)),
    "adaad, weight 0.7": (methods.get("adaad", adversarial_weight=0.7), lambda s, t: adaad(s, t, 0.7, 6)),
    "adaad, weight 0": (methods.get("adaad", adversarial_weight=0.0), lambda s, t: adaad(s, t, 0.0, 6)),
    "adaad, mean": (methods.get("adaad", kl_reduction="mean"), lambda s, t: adaad(s, t, 1.0, 6 * 5)),
    "pgd-at": (methods.get("pgd-at"), pgd_at),
}


@pytest.mark.parametrize(("method", "formula"), LOSSES.values(), ids=LOSSES)
def test_an_outer_loss_and_its_parameter_gradient_equal_the_formula(method, formula):
    student, teacher = (copy.deepcopy(network) for network in NETWORKS)
    loss = method.outer_loss(student, teacher.eval(), X_NATURAL, X_ADV, LABELS)
    gradients = parameter_gradients(student, loss)
    expected_loss, expected_gradients = restated(formula)
    torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-5, atol=1e-6)
    scale = max(gradient.abs().max() for gradient in expected_gradients)
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5 * scale.item())


def test_an_outer_loss_gives_the_teacher_no_gradient_and_does_not_run_it_in_vain():
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


def test_an_inner_objective_gives_value_and_logit_gradients_of_its_formula():
    def cross_entropy(student_logits: Tensor) -> Tensor:
        return F.cross_entropy(student_logits, labels, reduction="none")

    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(7, 5, generator=generator) for _ in range(2)]
    labels = torch.arange(7) % 5
    formulas = {
        "adaad": (logits, None, kl),
        "pgd-at": (
            logits[:1],
            labels,
            lambda student_logits: F.cross_entropy(student_logits, labels, reduction="none"),
        ),
    }
    for name, (inputs, target, formula) in formulas.items():
        value, gradients = methods.get(name).objective.logit_gradients(tuple(inputs), target)
        inputs64 = [tensor.double().requires_grad_() for tensor in inputs]
        expected = formula(*inputs64)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
        expected_gradients = torch.autograd.grad(expected.sum(), inputs64)
        for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
            torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-6)


def test_the_rows_start_where_the_table_says():
    assert {name: method.start for name, method in methods.METHODS.items()} == {
        "adaad": "gaussian",
        "pgd-at": "uniform",
    }
    assert methods.get("adaad").options == MethodOptions(
        adversarial_weight=1.0, kl_reduction="batchmean", clean_statistics=True
    )


def test_get_changes_options_of_the_copy_and_refuses_what_it_does_not_know():
    changed = methods.get("adaad", adversarial_weight=0.5, clean_statistics=False)
    assert (changed.options.adversarial_weight, changed.options.clean_statistics) == (0.5, False)
    assert methods.get("adaad").options.adversarial_weight == 1.0
    with pytest.raises(ValueError, match=r"unknown method 'trade': choose one of adaad, pgd-at"):
        methods.get("trade")
    with pytest.raises(ValueError, match=r"unknown method option 'beta': choose one of adversarial_weight"):
        methods.get("adaad", beta=6)


def test_a_missing_teacher_or_missing_labels_are_named():
    student, teacher = NETWORKS
    with pytest.raises(ValueError, match="teacher is None: method adaad needs one"):
        methods.get("adaad").outer_loss(student, None, X_NATURAL, X_ADV)
    with pytest.raises(ValueError, match="labels are missing"):
        methods.get("pgd-at").outer_loss(student, teacher, X_NATURAL, X_ADV)


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
