"""AWP against a float64 restatement; nothing but the update remains of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel
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
