"""AutoAttack's stages against the library's own run, resumed after an interruption, and on few classes."""

import json
import logging

import foolbox
import pyautoattack
import pytest
import torch
from torch import Tensor, nn

from fastadaad.config import ThreatModel
from fastadaad.data import load_dataset
from fastadaad.evaluation import accuracy, evaluate, masking_warning, survival
from fastadaad.evaluation.attack_names import AUTOATTACK_STAGES
from fastadaad.inner.folded_network import FoldedNetwork
from fastadaad.models import load_model
from fastadaad.models.shipped import checkpoint_path

LINF, L2 = ThreatModel(epsilon=0.15), ThreatModel(norm="l2", epsilon=0.7)
BATCH_SIZE = 100


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """The shipped teacher of the digits."""
    checkpoint = checkpoint_path("shipped:demo-teacher")
    return load_model("cnn-72-s1", in_channels=1, checkpoint=checkpoint).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    dataset = load_dataset("digits")
    return dataset.test_images.permute(0, 3, 1, 2).float() / 255, dataset.test_labels


@pytest.fixture
def short_attacks(monkeypatch):
    """Gives the library's attacks fewer steps and queries, in its own run and in ours alike."""
    shorten(monkeypatch, pyautoattack.autoattack.APGDAttack, n_iter=10)
    shorten(monkeypatch, pyautoattack.autoattack.APGDAttack_targeted, n_iter=10)
    shorten(monkeypatch, pyautoattack.autoattack.FABAttack_PT, n_iter=5)
    shorten(monkeypatch, pyautoattack.autoattack.SquareAttack, n_queries=300)


def shorten(monkeypatch, attack_class, **settings):
    perturb = attack_class.perturb

    def perturb_shortly(self, *args, **kwargs):
        vars(self).update(settings)
        return perturb(self, *args, **kwargs)

    monkeypatch.setattr(attack_class, "perturb", perturb_shortly)


def batches(x: Tensor, labels: Tensor):
    return lambda: zip(x.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True)


def accuracy_by_the_library(model: nn.Module, x: Tensor, labels: Tensor, threat_model: ThreatModel, stages) -> float:
    norm = {"linf": "Linf", "l2": "L2"}[threat_model.norm]
    attack = pyautoattack.AutoAttack(
        model, norm=norm, eps=threat_model.epsilon, seed=0, version="custom", attacks=list(stages)
    )
    attack.apgd.n_restarts = 1  # as in the standard version, which cannot run a list of attacks
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    _, predicted = attack.run_standard_evaluation(x, labels, batch_size=BATCH_SIZE)
    return (predicted == labels).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_pgd_is_as_strong_as_another_librarys(teacher, digits, threat_model):
    x, labels = digits[0][:200], digits[1][:200]
    (ours,) = evaluate(teacher, batches(x, labels), ["pgd20"], threat_model=threat_model)
    attack = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[threat_model.norm]
    step = threat_model.epsilon / 4
    theirs = attack(abs_stepsize=step, steps=20, random_start=True)
    torch.manual_seed(0)
    model = foolbox.PyTorchModel(teacher, bounds=(0, 1), device="cpu")
    _, _, broken = theirs(model, x, labels, epsilons=threat_model.epsilon)
    assert ours.accuracy == pytest.approx(1 - broken.double().mean().item(), abs=0.0051)  # one image
    assert ours.accuracy < 0.8


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.slow
@pytest.mark.parametrize("threat_model", [LINF, L2], ids=["linf", "l2"])
def test_apgd_has_the_accuracy_of_the_librarys_own_run(teacher, digits, threat_model):
    x, labels = digits[0][:120], digits[1][:120]
    (ours,) = evaluate(teacher, batches(x, labels), ["apgd-ce"], threat_model=threat_model)
    theirs = accuracy_by_the_library(teacher, x, labels, threat_model, ["apgd-ce"])
    assert ours.accuracy == pytest.approx(theirs, abs=0.003)
    assert ours.accuracy < evaluate(teacher, batches(x, labels), ["natural"], threat_model=threat_model)[0].accuracy


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.slow
def test_autoattack_has_the_accuracy_of_the_librarys_own_run(teacher, digits):
    x, labels = digits[0][:20], digits[1][:20]
    (ours,) = evaluate(teacher, batches(x, labels), ["autoattack"], threat_model=LINF)
    assert ours.accuracy == pytest.approx(
        accuracy_by_the_library(teacher, x, labels, LINF, AUTOATTACK_STAGES), abs=0.003
    )
    assert [stage for stage, _, _ in ours.parts] == list(AUTOATTACK_STAGES)
    accuracies = [accuracy for _, accuracy, _ in ours.parts]
    assert accuracies == sorted(accuracies, reverse=True)
    assert ours.accuracy == accuracies[-1]


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_an_interrupted_attack_resumes_after_its_last_batch(teacher, digits, tmp_path, monkeypatch):
    """The process dies in the second of three batches; the next call attacks the last two, a third call none."""
    x, labels = digits[0][:230], digits[1][:230]
    images = batches(x, labels)
    (whole,) = evaluate(teacher, images, ["cw5"], threat_model=LINF)
    attacked = []
    perturb = survival.Survival.advance

    def advance(self, indices, survives, seconds):
        if len(attacked) == 1:
            attacked.append(None)
            raise Killed
        attacked.append(len(indices))
        perturb(self, indices, survives, seconds)

    monkeypatch.setattr(survival.Survival, "advance", advance)
    with pytest.raises(Killed):
        evaluate(teacher, images, ["cw5"], threat_model=LINF, state=tmp_path)
    (resumed,) = evaluate(teacher, images, ["cw5"], threat_model=LINF, state=tmp_path)
    assert resumed.accuracy == whole.accuracy
    correct = (teacher(x).argmax(1) == labels).sum().item()
    assert attacked == [100, None, 100, correct - 200]
    evaluate(teacher, images, ["cw5"], threat_model=LINF, state=tmp_path)
    assert len(attacked) == 4


GOOD = {"survives": [True, False], "attacked": [False, False], "accuracies": [], "seconds": [0.5]}


@pytest.mark.parametrize(
    "changed",
    [
        *({"survives": "ab"}, {"survives": [1, 0]}, {"attacked": [True]}, {"accuracies": 3}, {"seconds": [None]}),
        *({"accuracies": [0.5, 0.5]}, {"seconds": [0.5, 0.5]}, {"other": 1}),
        {"survives": [True] * 3, "attacked": [True] * 3},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused(tmp_path, changed):
    keeper = survival.Keeper(tmp_path, "cw5", "facts")
    keeper.save(survival.Survival(**GOOD))
    (path,) = tmp_path.iterdir()
    assert keeper.load(2) == survival.Survival(**GOOD)
    path.write_text(json.dumps(GOOD | changed))
    with pytest.raises(
        ValueError, match=f"^{path} (cannot be read|is of 3 images, not 2).*: delete it, and this attack starts again"
    ):
        keeper.load(2)


def test_a_state_of_other_weights_images_or_settings_is_ignored(teacher, digits, tmp_path):
    x, labels = digits[0][:50], digits[1][:50]
    other = load_model("cnn-72-s1", in_channels=1)
    evaluate(teacher, batches(x, labels), ["cw5"], threat_model=LINF, state=tmp_path)
    evaluate(other, batches(x, labels), ["cw5"], threat_model=LINF, state=tmp_path)
    evaluate(teacher, batches(x[:40], labels[:40]), ["cw5"], threat_model=LINF, state=tmp_path)
    evaluate(teacher, batches(x, labels), ["cw5"], threat_model=LINF, seed=1, state=tmp_path)
    evaluate(teacher, batches(x, labels), ["cw5"], threat_model=L2, state=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    assert all(json.loads(path.read_text())["accuracies"] for path in files)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_few_classes_are_attacked_without_the_stage_that_needs_four(num_classes):
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, num_classes)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(num_classes, 64, generator=generator))
    model = nn.Sequential(nn.Flatten(), linear)
    x = torch.rand(20, 1, 8, 8, generator=generator)
    labels = model(x).argmax(1)
    (result,) = evaluate(model, lambda: [(x, labels)], ["apgd-t"], threat_model=ThreatModel(epsilon=0.02))
    assert result.accuracy == 1.0
    assert result.notes == (f"apgd-t is left out: its loss needs 4 classes, and the model has {num_classes}",)
    (result,) = evaluate(model, lambda: [(x, labels)], ["fab-t"], threat_model=ThreatModel(epsilon=0.02))
    assert result.accuracy < 1.0


class Saturated(nn.Module):
    """Scales the logits until the cross-entropy of a correct prediction and its gradient are exactly 0 in fp32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.slow
def test_masked_gradients_are_reported(teacher, digits):
    x, labels = digits[0][:30], digits[1][:30]
    masked, threat_model = Saturated(teacher), ThreatModel(epsilon=0.25)
    results = evaluate(masked, batches(x, labels), ["pgd20", "square"], threat_model=threat_model)
    assert results[0].accuracy > 0.9  # it looks robust
    assert "the gradients of this model are masked" in masking_warning(results)
    honest = evaluate(teacher, batches(x, labels), ["pgd20", "square"], threat_model=threat_model)
    assert masking_warning(honest) is None
    assert honest[1].accuracy == pytest.approx(results[1].accuracy, abs=0.07)  # two images


def test_attacks_in_stages_run_a_folded_network_or_note_the_reason(teacher, digits, monkeypatch):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = teacher

        def forward(self, x: Tensor) -> Tensor:
            return self.teacher(x) if x.sum() > 0 else self.teacher(-x)

    attacked = []

    def attack_survivors(model: nn.Module, network: nn.Module, *args, **kwargs):
        attacked.append(network)
        return survival.attack_survivors(model, network, *args, **kwargs)

    monkeypatch.setattr(accuracy, "attack_survivors", attack_survivors)
    images, branches = batches(digits[0][:20], digits[1][:20]), Branches()
    (folded,) = evaluate(teacher, images, ["cw2"], threat_model=LINF)
    (unfolded,) = evaluate(branches, images, ["cw2"], threat_model=LINF)
    assert folded.accuracy == unfolded.accuracy
    assert isinstance(attacked[0], FoldedNetwork)
    assert folded.notes == ()
    assert attacked[1] is branches
    assert [note[:27] for note in unfolded.notes] == ["batch-norm was not folded: "]


def test_without_the_library_one_line_names_the_remedy(teacher, digits, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    with pytest.raises(ValueError, match=r"AutoAttack needs pyautoattack: pip install 'fastadaad\[aa\]'"):
        evaluate(teacher, batches(*digits), ["natural", "autoattack"], threat_model=LINF)


class Noisy(nn.Module):
    """Adds noise to the images, as randomised defences do, and counts the forward passes with a gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.num_passes = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_passes += x.requires_grad
        return self.network(x + 0.3 * torch.randn_like(x))


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model uses chance")
def test_autoattack_rand_averages_twenty_draws_and_is_stronger_on_a_network_that_uses_chance(teacher, digits):
    x, labels = digits[0][:30], digits[1][:30]
    found = {}
    for attack in ("apgd-ce", "autoattack-rand"):
        model, threat_model = Noisy(teacher), ThreatModel(epsilon=0.1)
        torch.manual_seed(0)
        (result,) = evaluate(model, batches(x, labels), [attack], threat_model=threat_model)
        found[attack] = result, model.num_passes
    (weak, passes), (strong, passes_of_rand) = found.values()
    assert [stage for stage, _, _ in strong.parts] == ["apgd-ce", "apgd-dlr"]
    assert passes_of_rand == 40 * passes  # twenty draws in each of two stages
    assert strong.accuracy < weak.accuracy


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.slow
def test_autoattack_rand_has_the_accuracy_of_the_librarys_own_run(teacher, digits):
    x, labels = digits[0][:12], digits[1][:12]
    (ours,) = evaluate(teacher, batches(x, labels), ["autoattack-rand"], threat_model=LINF)
    attack = pyautoattack.AutoAttack(teacher, norm="Linf", eps=LINF.epsilon, seed=0, version="rand")
    logging.getLogger("auto-attack").setLevel(logging.ERROR)
    _, predicted = attack.run_standard_evaluation(x, labels, batch_size=BATCH_SIZE)
    assert ours.accuracy == pytest.approx((predicted == labels).double().mean().item(), abs=0.003)


def test_apgd_dlr_is_left_out_for_two_classes():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    (result,) = evaluate(network, lambda: [(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))], ["autoattack-rand"])
    assert result.notes == ("apgd-dlr is left out: its loss needs 3 classes, and the model has 2",)
