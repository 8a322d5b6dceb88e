"""Carlini-Wagner attack against a closed form and against foolbox's implementation."""

import foolbox
import pytest
import torch
from networks import images_and_labels, trained_network
from torch import nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation.carlini_wagner import CarliniWagner
from fastadaad.methods.objectives import margin

X_NATURAL, LABELS = images_and_labels(24)
FULL = CarliniWagner(num_steps=200, search_steps=6, constant=1e-2, confidence=0.0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return trained_network(X_NATURAL, LABELS).eval().requires_grad_(False)


def test_the_margin_excludes_the_label_for_negative_logits_too():
    logits = torch.tensor([[3.0, -5.0, -1.0], [-3.0, -5.0, -4.0]])
    assert margin(logits, torch.tensor([0, 1])).tolist() == [-4.0, 2.0]
    assert margin(logits - 100, torch.tensor([0, 1])).tolist() == [-4.0, 2.0]


@pytest.mark.slow
def test_the_images_are_adversarial_at_the_returned_distance(model):
    x_adv, distance = FULL.perturb(model, X_NATURAL, LABELS)
    found = distance.isfinite()
    assert found.double().mean() > 0.9
    assert (model(x_adv).argmax(1) != LABELS)[found].all()
    torch.testing.assert_close((x_adv - X_NATURAL).flatten(1).norm(dim=1)[found], distance[found])
    assert torch.equal(x_adv[~found], X_NATURAL[~found])
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_a_linear_model_is_broken_at_the_distance_of_its_boundary():
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(192, 2)
    with torch.no_grad():
        linear.weight.copy_(0.2 * torch.randn(2, 192, generator=generator))
    model = nn.Sequential(nn.Flatten(), linear).requires_grad_(False)
    x_natural = 0.3 + 0.4 * torch.rand(16, 3, 8, 8, generator=generator)
    labels = model(x_natural).argmax(1)
    direction = linear.weight[0] - linear.weight[1]
    boundary = -margin(model(x_natural), labels) / direction.norm()
    attack = CarliniWagner(num_steps=400, search_steps=9, constant=1e-2, confidence=0.0)
    _, distance = attack.perturb(model, x_natural, labels)
    assert (distance >= boundary - 1e-4).all()  # no image is closer than the boundary
    # The resolution is one step of Adam: up to learning_rate / 2 for each of the 192 pixels, 0.07 in l2.
    torch.testing.assert_close(distance, boundary, rtol=0.05, atol=0.07)


@pytest.mark.slow
def test_the_distances_are_those_of_foolbox(model):
    _, distance = FULL.perturb(model, X_NATURAL, LABELS)
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=6, steps=200, stepsize=0.01, confidence=0.0, initial_const=1e-2
    )
    other = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    _, clipped, success = attack(other, X_NATURAL, LABELS, epsilons=None)
    attacked = (model(X_NATURAL).argmax(1) == LABELS) & success & distance.isfinite()
    theirs = (clipped - X_NATURAL).flatten(1).norm(dim=1)
    assert attacked.sum() >= 15
    assert distance[attacked].mean().item() == pytest.approx(theirs[attacked].mean().item(), rel=0.03)
    torch.testing.assert_close(distance[attacked], theirs[attacked], rtol=0.15, atol=0.03)


def test_a_larger_constant_breaks_more_images_and_the_search_shortens_distances(model):
    x_adv = [
        CarliniWagner(num_steps=100, constant=constant).adversarial_images(model, ThreatModel(), X_NATURAL, LABELS, [])
        for constant in (1e-3, 0.1, 10.0)
    ]
    robust = [(model(x).argmax(1) == LABELS).double().mean().item() for x in x_adv]
    assert robust == sorted(robust, reverse=True)
    assert robust[0] > robust[-1]
    _, once = CarliniWagner(num_steps=100, constant=10.0, confidence=0.0).perturb(model, X_NATURAL, LABELS)
    _, searched = CarliniWagner(num_steps=100, constant=10.0, confidence=0.0, search_steps=5).perturb(
        model, X_NATURAL, LABELS
    )
    assert (searched <= once).all()
    assert searched.sum() < 0.95 * once.sum()


@pytest.mark.slow
def test_within_epsilon_an_image_breaks_only_inside_the_radius(model):
    attack = CarliniWagner(num_steps=100, search_steps=4, constant=0.01, confidence=0.0, within_epsilon=True)
    _, distance = attack.perturb(model, X_NATURAL, LABELS)
    right = model(X_NATURAL).argmax(1) == LABELS
    for epsilon in (0.1, 0.5, 5.0):
        threat_model = ThreatModel(norm="l2", epsilon=epsilon)
        x_adv = attack.adversarial_images(model, threat_model, X_NATURAL, LABELS, [])
        assert torch.equal(model(x_adv).argmax(1) == LABELS, right & (distance > epsilon))
