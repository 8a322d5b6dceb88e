"""Accuracy under attack against closed forms and a plain loop, and its tables, files and plots."""

import copy
import csv
import io
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from networks import images_and_labels, trained_network
from plain import cross_entropy, inner_loop
from rich.console import Console
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.evaluation import AttackResult, check_attacks, evaluate, masking_warning, merge, parse_attack
from fastadaad.evaluation.attacks import GradientAttack
from fastadaad.evaluation.carlini_wagner import CarliniWagner
from fastadaad.evaluation.plots import plot_curves
from fastadaad.evaluation.report import print_accuracies, print_attacks, write_json, write_results
from fastadaad.methods.objectives import MARGIN
from fastadaad.runtime.json_files import checked

NUM_IMAGES, BATCH_SIZE = 46, 8  # the last batch is smaller
X_NATURAL, LABELS = images_and_labels(NUM_IMAGES)
LINF, L2 = ThreatModel(epsilon=12 / 255), ThreatModel(norm="l2", epsilon=0.6)


def batches():
    return zip(X_NATURAL.split(BATCH_SIZE), LABELS.split(BATCH_SIZE), strict=True)


MODEL = trained_network(X_NATURAL, LABELS)


def measure(*attacks: str, model: nn.Module = MODEL, threat_model: ThreatModel = LINF, **options) -> list[AttackResult]:
    return evaluate(model, batches, attacks, threat_model=threat_model, **options)


def correct(x: Tensor) -> Tensor:
    return copy.deepcopy(MODEL).eval()(x).argmax(1) == LABELS


def test_every_image_counts_once_including_a_smaller_last_batch():
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
    """An image is robust if its margin exceeds epsilon times the dual norm of the difference of the two weight rows."""
    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(3 * 8 * 8, 2)
    with torch.no_grad():
        linear.weight.copy_(0.2 * torch.randn(linear.weight.shape, generator=generator))
        linear.bias.zero_()
    x_natural = 0.3 + 0.4 * torch.rand(400, 3, 8, 8, generator=generator)  # no attack reaches the limits of [0, 1]
    direction = (linear.weight[0] - linear.weight[1]).detach()
    with torch.no_grad():
        linear.bias[0] -= (x_natural.flatten(1) @ direction).median()
    margin = (x_natural.flatten(1) @ direction + linear.bias[0] - linear.bias[1]).detach()
    labels = (margin < 0).long()
    labels[::10] = 1 - labels[::10]  # misclassified before the attack
    robust = margin.abs() > epsilon * direction.norm(dual_order)
    robust[::10] = False

    model = nn.Sequential(nn.Flatten(), linear)
    threat_model = ThreatModel(norm=norm, epsilon=epsilon)
    results = evaluate(model, lambda: [(x_natural, labels)], ["natural", attack], threat_model=threat_model)
    assert [result.accuracy for result in results] == [0.9, robust.double().mean().item()]
    assert 0.1 < results[1].accuracy < 0.8


def test_the_model_is_unchanged_afterwards():
    model = trained_network(X_NATURAL, LABELS)
    model[1].eval()
    before = copy.deepcopy(model)
    evaluate(model, batches, ["natural", "pgd2"], threat_model=LINF)
    for (name, tensor), expected in zip(model.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name
    assert [module.training for module in model.modules()] == [module.training for module in before.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["", "pgd", "pgd0", "pgd-3", "PGD20", "pgd20x", "cw-l20", "autoattack2"])
def test_an_unknown_attack_is_refused_before_anything_runs(name):
    def never():
        raise AssertionError("the images were read")

    with pytest.raises(ValueError, match="choose natural, fgsm, pgdN"):
        evaluate(MODEL, never, ["natural", name], threat_model=LINF)


def test_attack_names():
    assert parse_attack("fgsm").stages == (("fgsm", GradientAttack(num_steps=1, relative_step_size=1.0)),)
    pgd = GradientAttack(num_steps=20, relative_step_size=0.25, start="uniform")
    assert parse_attack("pgd20").stages == (("pgd20", pgd),)
    assert parse_attack("cw-linf").stages[0][1] == replace(pgd, objective=MARGIN)
    assert parse_attack("cw-linf50").stages[0][1] == replace(pgd, objective=MARGIN, num_steps=50)
    assert [stage for stage, _ in parse_attack("autoattack").stages] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert parse_attack("cw").stages[0][1] == CarliniWagner(num_steps=1000, constant=0.1, search_steps=1)
    assert parse_attack("cw200").stages[0][1] == CarliniWagner(num_steps=200)


def test_an_attack_that_does_not_fit_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match="cw-l2 needs an l2 radius, and the threat model's norm is linf: use cw"):
        measure("natural", "cw-l2")
    check_attacks(["cw-l2"], L2)


def test_cw_linf_is_the_plain_loop_on_the_margin():
    value = copy.deepcopy(MODEL).eval()
    generator = torch.Generator().manual_seed(3)
    robust = correct(X_NATURAL)
    x_adv = []
    for x_natural, labels in batches():

        def margin(x, labels=labels):
            logits = value(x)
            others = torch.stack(
                [row[torch.arange(len(row)) != y].max() for row, y in zip(logits, labels, strict=True)]
            )
            return (others - logits[torch.arange(len(labels)), labels]).sum()

        start = x_natural + torch.empty_like(x_natural).uniform_(-LINF.epsilon, LINF.epsilon, generator=generator)
        settings = {"norm": "linf", "epsilon": LINF.epsilon, "step_size": LINF.epsilon / 4, "num_steps": 6}
        x_adv.append(inner_loop(margin, x_natural, start.clamp(0, 1), **settings))
    robust &= correct(torch.cat(x_adv))
    assert measure("cw-linf6", seed=3)[0].accuracy == robust.double().mean().item()


@pytest.mark.parametrize("attack", ["pgd5", "cw-linf5", "cw50", "apgd-ce"])
def test_a_constant_added_to_all_logits_changes_nothing(attack):
    shifted = nn.Sequential(copy.deepcopy(MODEL), Shift())
    accuracies = [measure(attack, model=model)[0].accuracy for model in (MODEL, shifted)]
    assert accuracies[0] == accuracies[1] < measure("natural")[0].accuracy


class Shift(nn.Module):
    """Subtracts 10 from all logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits - 10


def test_robust_accuracy_falls_with_steps_restarts_and_radius():
    for threat_model in (LINF, L2):
        steps = [measure(f"pgd{n}", threat_model=threat_model)[0].accuracy for n in (1, 3, 10, 30)]
        radii = [replace(threat_model, epsilon=scale * threat_model.epsilon) for scale in (0.25, 0.5, 1.0, 2.0)]
        sizes = [measure("pgd10", threat_model=radius)[0].accuracy for radius in radii]
        for accuracies in (steps, sizes):
            assert accuracies == sorted(accuracies, reverse=True)
            assert accuracies[0] > accuracies[-1]


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images to evaluate on"):
        evaluate(MODEL, lambda: [], ["natural"], threat_model=LINF)


RESULTS = [
    AttackResult(attack="natural", restarts=1, norm="linf", epsilon=0.1, num_images=10_000, accuracy=0.9, seconds=1.0),
    AttackResult(attack="pgd20", restarts=2, norm="linf", epsilon=0.1, num_images=10_000, accuracy=0.5, seconds=2.0),
]


def test_the_margin_is_that_of_the_binomial():
    assert RESULTS[1].margin == pytest.approx(1.96 * math.sqrt(0.25 / 10_000), rel=1e-12)


def test_the_table_and_the_csv_have_the_same_accuracies(tmp_path):
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


def result(attack: str, accuracy: float, **fields) -> AttackResult:
    fixed = {"restarts": 1, "norm": "linf", "epsilon": 0.1, "num_images": 100, "seconds": 1.0}
    return AttackResult(attack=attack, accuracy=accuracy, **fixed | fields)


STAGES = (("apgd-ce", 0.5, 1.5), ("square", 0.25, 2.5))


def test_stages_and_notes_are_printed_and_restored_from_json(tmp_path):
    attacked = result("autoattack", 0.25, parts=STAGES, notes=("something",))
    console = Console(file=io.StringIO(), width=100)
    print_attacks(console, [result("natural", 0.9), attacked])
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert any("after apgd-ce │ 50.0 │ 1.5" in line for line in lines)
    assert "autoattack: something" in lines
    write_json(tmp_path / "results.json", "student", [attacked])
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["model"], content["warning"]) == ("student", None)
    assert checked(content["attacks"][0], AttackResult) == attacked
    assert asdict(attacked).keys() <= attacked.row().keys()
    assert attacked.row()["parts"] == "apgd-ce 0.5000 in 1.5 s; square 0.2500 in 2.5 s"


def test_shards_merge_to_the_result_on_all_images():
    other = replace(result("autoattack", 1.0, num_images=300), parts=(("apgd-ce", 1.0, 3.0), ("square", 1.0, 4.0)))
    merged = merge([result("autoattack", 0.25, parts=STAGES, notes=("a",)), other])
    assert (merged.num_images, merged.accuracy, merged.seconds) == (400, 0.8125, 2.0)
    assert merged.parts == (("apgd-ce", 0.875, 4.5), ("square", 0.8125, 6.5))
    assert merged.notes == ("a",)


def test_only_masked_gradients_raise_a_warning():
    assert masking_warning([result("pgd20", 0.60), result("autoattack", 0.51)]) is None
    assert masking_warning([result("natural", 0.9), result("autoattack", 0.1)]) is None
    masked = [result("pgd20", 0.70), result("fgsm", 0.65), result("autoattack", 0.50)]
    assert "accuracy is 50.0 % under autoattack and 65.0 % under fgsm" in masking_warning(masked)
    console = Console(file=io.StringIO(), width=200)
    print_accuracies(console, [("student", masked)])
    assert "student: warning: accuracy is 50.0 % under autoattack" in console.file.getvalue()


def test_every_strong_attack_in_the_same_ball_is_compared_with_gradient_ascent():
    """By hand: a gap of more than ten points to the lowest of them is named, and one of ten is not."""
    pgd = [result("natural", 0.95), result("fgsm", 0.88), result("pgd20", 0.845)]
    for attack in (
        "cw-linf",
        "cw-linf50",
        "pgd20-targeted",
        "apgd-ce",
        "apgd-t",
        "fab-t",
        "square",
        "autoattack",
        "autoattack-rand",
        "cw-l2",
    ):
        words = f"accuracy is 49.2 % under {attack} and 84.5 % under pgd20"
        assert words in masking_warning([*pgd, result("autoattack", 0.8), result(attack, 0.492)])
        assert masking_warning([*pgd, result(attack, 0.745)]) is None
    assert "0.1 % under square and 30.0 % under cw-linf" in masking_warning(
        [result("cw-linf", 0.3), result("square", 0.001)]
    )
    # The attack of the paper has no radius, so it may leave the ball.
    assert masking_warning([*pgd, result("cw", 0.0), result("cw100", 0.0)]) is None
    assert masking_warning([result("cw-linf", 0.3)]) is None


def test_curves_are_drawn_from_the_evaluated_epochs(tmp_path):
    rows = [{"epoch": 1.0}, {"epoch": 2.0, "natural_accuracy": 0.5, "robust_accuracy": 0.25}]
    path = tmp_path / "curves.png"
    plot_curves(path, {"adaad": [rows]}, {"natural_accuracy": 0.8, "robust_accuracy": 0.6}, "title")
    assert path.read_bytes().startswith(b"\x89PNG")
