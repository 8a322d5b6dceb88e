"""Transfer attacks: a network under the adversarial images of another one."""

import copy

import pytest
import torch
from networks import images_and_labels, trained_network
from plain import cross_entropy, inner_loop
from torch import nn

from fastadaad import ThreatModel
from fastadaad.evaluation import evaluate

EPSILON = 0.1
BALL = ThreatModel(epsilon=EPSILON)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, nn.Module, torch.Tensor, torch.Tensor]:
    """Two networks that classify the same images, with different weights."""
    x_natural, labels = images_and_labels(batch_size=40)
    first = trained_network(x_natural, labels)
    second = copy.deepcopy(first)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in second.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.SGD(second.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(second(x_natural), labels).backward()
        optimizer.step()
    return first.eval(), second.eval(), x_natural, labels


def test_accuracy_is_that_of_the_model_on_the_surrogates_images(trained):
    model, surrogate, x_natural, labels = trained
    expected = []
    start = x_natural.clone()
    x_adv = inner_loop(
        cross_entropy(surrogate, labels), x_natural, start, norm="linf", epsilon=EPSILON, step_size=EPSILON, num_steps=1
    )
    with torch.no_grad():
        right = model(x_natural).argmax(1) == labels
        expected = (right & (model(x_adv).argmax(1) == labels)).double().mean().item()
    (result,) = evaluate(model, (x_natural, labels), "fgsm", threat_model=BALL, surrogate=surrogate)
    assert result.accuracy == pytest.approx(expected)
    assert result.notes == ("adversarial images of another network",)


def test_a_surrogate_is_weaker_than_the_model_itself_and_itself_is_the_same(trained):
    model, surrogate, x_natural, labels = trained
    data, names = (x_natural, labels), ["natural", "pgd5", "cw-linf5"]
    white, transfer, itself = (
        evaluate(model, data, names, threat_model=BALL, surrogate=other)
        for other in (None, surrogate, copy.deepcopy(model))
    )
    assert [result.accuracy for result in itself] == [result.accuracy for result in white]
    assert transfer[0].accuracy == white[0].accuracy
    assert transfer[0].notes == ()
    assert transfer[1].accuracy > white[1].accuracy
    assert transfer[1].accuracy < white[0].accuracy


@pytest.mark.parametrize(
    ("attack", "surrogate", "words"),
    [
        ("cw5", nn.Identity(), "attack cw5 asks the network that it attacks: with a surrogate choose fgsm, pgdN"),
        ("pgd5", "resnet18", "surrogate is a str: give a torch.nn.Module"),
    ],
)
def test_an_attack_that_cannot_transfer_is_refused(trained, attack, surrogate, words):
    model, _, x_natural, labels = trained
    with pytest.raises(ValueError, match=words):
        evaluate(model, (x_natural, labels), attack, threat_model=BALL, surrogate=surrogate)
