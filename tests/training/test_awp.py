"""AWP against a float64 restatement; nothing but the update remains of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.run_config import OptimConfig
from fastadaad.training.awp import perturbed_weights

INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=2, start="natural")
GAMMA, RATE = 0.05, 0.1
X_NATURAL, LABELS = images_and_labels()


def distiller(student: nn.Module, teacher: nn.Module, **options) -> Distiller:
    optimizer = torch.optim.SGD(student.parameters(), lr=RATE)
    return Distiller(student, teacher, method="pgd-at", inner=INNER, optimizer=optimizer, **options)


def gradients_at(parameters: list[torch.Tensor], network: nn.Module, x_adv: torch.Tensor) -> list[torch.Tensor]:
    """Gradients of the cross-entropy in train mode, for parameters given as tensors."""
    leaves = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    names = [name for name, _ in network.named_parameters()]
    logits = torch.func.functional_call(copy.deepcopy(network), dict(zip(names, leaves, strict=True)), (x_adv,))
    return list(torch.autograd.grad(F.cross_entropy(logits, LABELS), leaves))


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_step_uses_the_gradients_at_the_perturbed_weights(mode):
    student, teacher = student_and_teacher()
    before = copy.deepcopy(student).double()
    compile_options = {"backend": "aot_eager"} if mode == "compiled" else None
    step = distiller(student, teacher, awp_gamma=GAMMA, mode=mode, compile_options=compile_options).step
    x_adv = step(X_NATURAL, LABELS).x_adv.double()

    parameters = [parameter.detach() for parameter in before.parameters()]
    ascent = gradients_at(parameters, before, x_adv)
    perturbed = [
        w + GAMMA * w.norm() * g / g.norm() if w.dim() > 1 else w for w, g in zip(parameters, ascent, strict=True)
    ]
    descent = gradients_at(perturbed, before, x_adv)
    for new, old, gradient in zip(student.parameters(), parameters, descent, strict=True):
        torch.testing.assert_close(new.detach().double(), old - RATE * gradient, rtol=1e-4, atol=1e-5)
    plain, _ = student_and_teacher()
    distiller(plain, teacher).step(X_NATURAL, LABELS)
    assert not torch.allclose(plain[0].weight, student[0].weight, atol=1e-4)


def moved_together(named: dict[str, torch.Tensor], ascent: list[torch.Tensor], form: str) -> list[torch.Tensor]:
    """SAM by its paper's equation 2, ASAM by its paper's equation 3 with its program's eta, in float64."""
    sizes = [
        w.abs() + 0.01 if form == "asam" and not name.endswith("bias") else torch.ones_like(w)
        for name, w in named.items()
    ]
    length = sum((t * g).square().sum() for t, g in zip(sizes, ascent, strict=True)).sqrt()
    return [w + GAMMA * t**2 * g / length for w, t, g in zip(named.values(), sizes, ascent, strict=True)]


@pytest.mark.parametrize("form", ["sam", "asam"])
def test_a_step_of_sam_uses_the_gradients_at_its_perturbed_weights(form):
    student, teacher = student_and_teacher()
    before = copy.deepcopy(student).double()
    x_adv = distiller(student, teacher, awp_gamma=GAMMA, awp_form=form, mode="eager").step(X_NATURAL, LABELS).x_adv
    named = {name: parameter.detach() for name, parameter in before.named_parameters()}
    parameters = list(named.values())
    perturbed = moved_together(named, gradients_at(parameters, before, x_adv.double()), form)
    descent = gradients_at(perturbed, before, x_adv.double())
    for new, old, gradient in zip(student.parameters(), parameters, descent, strict=True):
        torch.testing.assert_close(new.detach().double(), old - RATE * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["sam", "asam"])
def test_sam_leaves_a_network_with_zero_gradients_unchanged(form):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    originals = [parameter.detach().clone() for parameter in network.parameters()]
    with perturbed_weights(network, GAMMA, form):
        assert all(map(torch.equal, network.parameters(), originals))
    with pytest.raises(ValueError, match="awp_form is 'asma': choose awp, sam or asam"):
        distiller(*student_and_teacher(), awp_gamma=GAMMA, awp_form="asma")
    with pytest.raises(ValueError, match="awp_form sam has no radius: set"):
        OptimConfig(epochs=1, awp_form="sam")


def test_batch_norm_sees_the_images_once():
    student, teacher = student_and_teacher()
    before = student[1].num_batches_tracked.item()
    distiller(student, teacher, awp_gamma=GAMMA).step(X_NATURAL, LABELS)
    assert student[1].num_batches_tracked.item() == before + 1


def test_weights_are_restored_bitwise_and_those_without_gradient_are_not_perturbed():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    network[0].weight.grad = torch.randn(4, 4)
    network[1].weight.grad = torch.zeros(4, 4)
    network[0].bias.grad = torch.randn(4)
    originals = [parameter.detach().clone() for parameter in network.parameters()]
    inside = []

    def look_and_fail():
        with perturbed_weights(network, GAMMA):
            inside.extend(parameter.detach().clone() for parameter in network.parameters())
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        look_and_fail()
    changed = [not torch.equal(parameter, original) for parameter, original in zip(inside, originals, strict=True)]
    assert changed == [True, False, False, False, False, False]
    assert (inside[0] - originals[0]).norm() == pytest.approx(GAMMA * originals[0].norm().item(), rel=1e-5)
    assert all(map(torch.equal, network.parameters(), originals))
