"""Two teachers as one: the gradient of AKD2's program, and a run whose teacher is the mixture."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, tiny_network
from torch import nn

from fastadaad import Distiller, InnerConfig, ThreatModel, load_model, methods, recipes
from fastadaad.models.mixed_teacher import MixedTeacher
from fastadaad.models.weights_writing import save_weights
from fastadaad.training.build import build_teacher
from fastadaad.training.data import training_data
from fastadaad.training.fingerprint import training_facts

CPU = torch.device("cpu")


def networks() -> tuple[nn.Module, nn.Module, nn.Module]:
    return tiny_network(1), tiny_network(2, channels=8).eval(), tiny_network(3).eval()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_akd_from_the_mixture_has_the_gradient_of_akd2s_loss(temperature):
    student, robust, standard = networks()
    x_natural, labels = images_and_labels(batch_size=8)
    x_adv = (x_natural + 0.05 * torch.randn(x_natural.shape)).clamp(0, 1)
    plain = copy.deepcopy(student).double()
    logits = plain(x_adv.double())
    loss = 0.25 * F.cross_entropy(logits, labels)
    for alpha, teacher in ((0.5, robust), (0.25, standard)):
        target = F.softmax(copy.deepcopy(teacher).double()(x_adv.double()).detach() / temperature, dim=1)
        kl = F.kl_div(F.log_softmax(logits / temperature, dim=1), target, reduction="batchmean")
        loss = loss + alpha * temperature**2 * kl
    expected = torch.autograd.grad(loss, list(plain.parameters()))

    mixture = MixedTeacher(robust, standard, weight=1 / 3, temperature=temperature).eval()
    method = methods.get("akd", teacher_weight=0.75, temperature=temperature)
    value = method.outer_loss(student, mixture, x_natural, x_adv, labels)
    for gradient, wanted in zip(torch.autograd.grad(value, list(student.parameters())), expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5)


def test_the_mixture_folds_and_the_search_goes_through_both_teachers():
    student, robust, standard = networks()
    mixture = MixedTeacher(robust, standard, weight=0.4).eval()
    inner = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.05, num_steps=2, start="natural")
    x_natural, labels = images_and_labels(batch_size=8)
    plain = copy.deepcopy(student).eval()
    x_adv = x_natural
    for _ in range(2):
        x_adv = x_adv.detach().requires_grad_()
        q = 0.6 * F.softmax(robust(x_adv), 1) + 0.4 * F.softmax(standard(x_adv), 1)
        kl = (q * (q.log() - F.log_softmax(plain(x_adv), 1))).sum()
        (gradient,) = torch.autograd.grad(kl, x_adv)
        x_adv = (x_adv.detach() + 0.05 * gradient.sign()).clamp(x_natural - 0.1, x_natural + 0.1).clamp(0, 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    distiller = Distiller(student, mixture, inner=inner, optimizer=optimizer, mode="eager", layout="contiguous")
    found = distiller.step(x_natural, labels).x_adv
    assert ((found - x_adv).abs() <= 1e-6).double().mean() >= 0.999


def test_a_run_mixes_in_a_second_teacher_by_its_file(tmp_path):
    file = tmp_path / "second.safetensors"
    save_weights(file, load_model("rescnn-4", in_channels=1))
    config = recipes.get("demo", method="akd")
    two = replace(config, teacher=replace(config.teacher, beside=str(file)))
    data = training_data(two, CPU)
    first = build_teacher(config.teacher, data, CPU, config.method_row).eval()
    second = load_model("rescnn-4", in_channels=1, checkpoint=file).eval()
    mixture = build_teacher(two.teacher, data, CPU, two.method_row).eval()
    x, tau = torch.rand(4, 1, 8, 8), two.method_row.options.temperature
    expected = 2 / 3 * F.softmax(first(x) / tau, 1) + 1 / 3 * F.softmax(second(x) / tau, 1)
    torch.testing.assert_close(F.softmax(mixture(x) / tau, 1), expected, rtol=1e-5, atol=1e-6)

    facts, before = training_facts(two), training_facts(config)
    assert len(facts["teacher"].pop("beside")) == 64
    assert facts == before  # a run with one teacher is the same as ever


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beside": "f", "beside_weight": 1.0}, r"beside_weight is 1.0: it must lie between 0 and 1"),
        ({"beside_weight": 0.5}, "beside_weight needs a second teacher: set teacher.beside"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(recipes.get("demo").teacher, **changes)
