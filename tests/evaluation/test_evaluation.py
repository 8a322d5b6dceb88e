"""Accuracy under attack: against closed forms and the plain loop, and how it is reported."""

import copy
import csv
import io
import math

import pytest
import torch
from networks import images_and_labels, tiny_network
from plain import cross_entropy, inner_loop
from rich.console import Console
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation import AttackResult, AttackSpec, evaluate, parse_attack
from fastadaad.evaluation.plots import plot_curves
from fastadaad.evaluation.report import print_accuracies, write_results
from fastadaad.run_log import METRICS

NUM_IMAGES, BATCH_SIZE = 46, 8  # the last batch is smaller
X_NATURAL, LABELS = images_and_labels(NUM_IMAGES)
LINF, L2 = ThreatModel(epsilon=12 / 255), ThreatModel(norm="l2", epsilon=0.6)


def batches():
    return zip(X_NATURAL.split(BATCH_SIZE), LABELS.split(BATCH_SIZE), strict=True)


def trained_network() -> nn.Module:
    """A network that classifies most of the images correctly, so that an attack has something to lose."""
    network = tiny_network(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(X_NATURAL), LABELS).backward()
        optimizer.step()
    return network


MODEL = trained_network()


def measure(*attacks: str, model: nn.Module = MODEL, threat_model: ThreatModel = LINF, **options) -> list[AttackResult]:
    return evaluate(model, batches, attacks, threat_model=threat_model, **options)


def correct(x: Tensor) -> Tensor:
    return copy.deepcopy(MODEL).eval()(x).argmax(1) == LABELS


def test_every_image_counts_once_in_a_ragged_last_batch_too():
    seen = []
    natural, fgsm = measure("natural", "fgsm", progress=lambda attack, num_images: seen.append((attack, num_images)))
    assert natural.accuracy == correct(X_NATURAL).double().mean().item()
    assert (natural.num_images, fgsm.num_images) == (NUM_IMAGES, NUM_IMAGES)
    sizes = [8, 8, 8, 8, 8, 6]
    assert seen == [("natural", size) for size in sizes] + [("fgsm", size) for size in sizes]


@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_fgsm_is_one_step_of_epsilon(threat_model):
    epsilon = threat_model.epsilon
    value = cross_entropy(copy.deepcopy(MODEL).eval(), LABELS)
    settings = {"norm": threat_model.norm, "epsilon": epsilon, "step_size": epsilon, "num_steps": 1}
    x_adv = inner_loop(value, X_NATURAL, X_NATURAL, **settings)
    expected = (correct(X_NATURAL) & correct(x_adv)).double().mean().item()
    assert measure("fgsm", threat_model=threat_model)[0].accuracy == expected
    assert expected < correct(X_NATURAL).double().mean()


def test_pgd_is_the_plain_loop_from_uniform_starts():
    epsilon, value = LINF.epsilon, copy.deepcopy(MODEL).eval()
    generator = torch.Generator().manual_seed(7)
    robust = correct(X_NATURAL)
    x_adv = []
    for x_natural, labels in batches():
        start = x_natural + torch.empty_like(x_natural).uniform_(-epsilon, epsilon, generator=generator)
        settings = {"norm": "linf", "epsilon": epsilon, "step_size": epsilon / 4, "num_steps": 6}
        x_adv.append(inner_loop(cross_entropy(value, labels), x_natural, start.clamp(0, 1), **settings))
    robust &= correct(torch.cat(x_adv))
    assert measure("pgd6", seed=7)[0].accuracy == robust.double().mean().item()


def test_stronger_attacks_never_raise_accuracy():
    natural, weak, strong = measure("natural", "pgd1", "pgd10")
    assert natural.accuracy > weak.accuracy > strong.accuracy > 0
    accuracies = [measure("pgd1", restarts=restarts)[0].accuracy for restarts in (1, 2, 4, 8)]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] > accuracies[-1]
    assert measure("pgd1", restarts=3)[0].restarts == 3
    assert [result.restarts for result in measure("natural", "fgsm", restarts=3)] == [1, 1]


def test_the_same_seed_gives_the_same_accuracy():
    assert measure("pgd2", seed=3)[0].accuracy == measure("pgd2", seed=3)[0].accuracy
    assert len({measure("pgd1", seed=seed)[0].accuracy for seed in range(6)}) > 1


@pytest.mark.parametrize(("norm", "epsilon", "dual_order"), [("linf", 0.006, 1), ("l2", 0.07, 2)])
@pytest.mark.parametrize("attack", ["fgsm", "pgd20"])
def test_a_linear_model_has_the_robust_accuracy_of_its_closed_form(norm, epsilon, dual_order, attack):
    """Two classes: an image is robust where its margin exceeds epsilon times the dual norm of the weight difference."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(3 * 8 * 8, 2)
    with torch.no_grad():
        linear.weight.copy_(0.2 * torch.randn(linear.weight.shape, generator=generator))
        linear.bias.zero_()
    x_natural = 0.3 + 0.4 * torch.rand(400, 3, 8, 8, generator=generator)  # the box [0, 1] stays out of reach
    direction = (linear.weight[0] - linear.weight[1]).detach()
    with torch.no_grad():
        linear.bias[0] -= (x_natural.flatten(1) @ direction).median()
    margin = (x_natural.flatten(1) @ direction + linear.bias[0] - linear.bias[1]).detach()
    labels = (margin < 0).long()
    labels[::10] = 1 - labels[::10]  # wrong from the start
    robust = margin.abs() > epsilon * direction.norm(dual_order)
    robust[::10] = False

    model = nn.Sequential(nn.Flatten(), linear)
    threat_model = ThreatModel(norm=norm, epsilon=epsilon)
    results = evaluate(model, lambda: [(x_natural, labels)], ["natural", attack], threat_model=threat_model)
    assert [result.accuracy for result in results] == [0.9, robust.double().mean().item()]
    assert 0.1 < results[1].accuracy < 0.8


def test_the_model_comes_back_as_it_was():
    model = trained_network()
    model[1].eval()
    before = copy.deepcopy(model)
    evaluate(model, batches, ["natural", "pgd2"], threat_model=LINF)
    for (name, tensor), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["", "pgd", "pgd0", "pgd-3", "PGD20", "pgd20x", "autoattack"])
def test_an_unknown_attack_is_refused_before_anything_runs(name):
    def never():
        raise AssertionError("the images were asked for")

    with pytest.raises(ValueError, match="choose natural, fgsm or pgdN"):
        evaluate(MODEL, never, ["natural", name], threat_model=LINF)


def test_attack_names():
    assert parse_attack("fgsm") == AttackSpec(name="fgsm", num_steps=1, relative_step_size=1.0, start="natural")
    assert parse_attack("pgd20") == AttackSpec(name="pgd20", num_steps=20, relative_step_size=0.25, start="uniform")


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to evaluate on"):
        evaluate(MODEL, lambda: [], ["natural"], threat_model=LINF)


RESULTS = [
    AttackResult(attack="natural", restarts=1, norm="linf", epsilon=0.1, num_images=10_000, accuracy=0.9, seconds=1.0),
    AttackResult(attack="pgd20", restarts=2, norm="linf", epsilon=0.1, num_images=10_000, accuracy=0.5, seconds=2.0),
]


def test_the_margin_is_that_of_the_binomial():
    assert RESULTS[1].margin == pytest.approx(1.96 * math.sqrt(0.25 / 10_000), rel=1e-12)


def test_the_table_and_the_csv_say_the_same(tmp_path):
    console = Console(file=io.StringIO(), width=100)
    print_accuracies(console, [("student", RESULTS)])
    table = " ".join(console.file.getvalue().split())
    for words in ("10,000 images", "linf epsilon 0.1", "pgd20 x2", "90.0 ± 0.6", "50.0 ± 1.0"):
        assert words in table
    path = tmp_path / "results.csv"
    write_results(path, [("student", RESULTS)])
    rows = list(csv.DictReader(path.open()))
    assert [(row["model"], row["attack"], float(row["accuracy"])) for row in rows] == [
        ("student", "natural", 0.9),
        ("student", "pgd20", 0.5),
    ]


def test_curves_are_drawn_from_epochs_that_were_measured(tmp_path):
    with open(tmp_path / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, METRICS)
        writer.writeheader()
        writer.writerow({"epoch": 1})
        writer.writerow({"epoch": 2, "natural_accuracy": 0.5, "robust_accuracy": 0.25})
    path = tmp_path / "curves.png"
    plot_curves(path, {"adaad": [tmp_path]}, {"natural_accuracy": 0.8, "robust_accuracy": 0.6}, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
