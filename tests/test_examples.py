"""Scripts in examples/: their students equal the students of a plain loop, and attacks of other libraries agree."""

import inspect
import re
from itertools import islice
from pathlib import Path

import accelerate_loop
import adaad_script
import digits
import foolbox_evaluation
import lightning_module
import plain_loop
import pytest
import timm_student
import torch
from plain import inner_loop, kl_to_teacher
from torch import Tensor, nn

from fastadaad import InnerConfig, InnerMaximizer, ThreatModel, load_model, methods
from fastadaad.inner import folded_cache as inner_networks
from fastadaad.training.plain_program import REFERENCES, reference_step

FOLDER = Path(adaad_script.__file__).parent
INNER = InnerConfig(threat_model=ThreatModel(epsilon=digits.EPSILON), step_size=digits.EPSILON / 3, num_steps=5)


@pytest.fixture(autouse=True)
def one_layout(monkeypatch) -> None:
    """Replaces the measured memory layout by a fixed one, so that two trainings can be compared bit by bit."""
    monkeypatch.setattr(inner_networks, "choose_memory_format", lambda *_, **__: torch.contiguous_format)


def student_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Makes the student and optimiser with which the examples begin."""
    torch.manual_seed(0)
    student = load_model("cnn-16-s1", in_channels=1)
    return student, torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, nesterov=True)


def assert_same_network(network: nn.Module, expected: nn.Module, rtol: float = 0.0, atol: float = 0.0) -> None:
    for (name, tensor), wanted in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def plain_adaad_inner_loss(
    net: nn.Module, teacher: nn.Module, x_natural: Tensor, *, step_size: float, steps: int, epsilon: float
) -> Tensor:
    net.eval()
    start = x_natural + 0.001 * torch.randn(x_natural.shape)
    settings = {"norm": "linf", "epsilon": epsilon, "step_size": step_size, "num_steps": steps}
    return inner_loop(kl_to_teacher(net, teacher), x_natural, start, **settings)


@pytest.mark.slow
def test_an_adaad_script_trains_the_same_network_with_either_inner_loss(monkeypatch):
    losses, network = adaad_script.main(epochs=1)
    monkeypatch.setattr(adaad_script, "adaad_inner_loss", plain_adaad_inner_loss)
    plain_losses, plain_network = adaad_script.main(epochs=1)
    assert losses == pytest.approx(plain_losses, rel=1e-3)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert_same_network(network, plain_network, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_plain_loop_trains_as_the_reference_of_its_method():
    (loss,), _ = plain_loop.main(epochs=1, method="rslad")
    student, optimizer = student_and_optimizer()
    reference, teacher = REFERENCES["rslad"], digits.robust_teacher()
    losses = [
        reference_step(reference, student, teacher, optimizer, x_natural, labels, inner=INNER)
        for x_natural, labels in digits.training_batches(seed=0)
    ]
    assert loss == pytest.approx(torch.stack(losses).mean().item(), rel=2e-3)


@pytest.mark.slow
def test_the_plain_loop_makes_a_robust_student():
    losses, (natural, pgd20) = plain_loop.main()
    assert losses[-1] < 0.4 * losses[0]
    assert natural.accuracy > 0.93
    assert pgd20.accuracy > 0.5


def trained_without_a_library(epochs: int) -> tuple[nn.Module, float]:
    """Trains by search and outer loss in a loop of four lines; returns the student and the last epoch's mean loss."""
    student, optimizer = student_and_optimizer()
    teacher, method = digits.robust_teacher().eval(), methods.get("adaad")
    maximizer = InnerMaximizer(student, teacher, method=method, inner=INNER)
    batches = digits.training_batches()
    for _ in range(epochs):
        losses = []
        # A loader draws once more when it is iterated beyond its last batch, which Lightning does not do.
        for x_natural, labels in islice(batches, len(batches)):
            optimizer.zero_grad()
            losses.append(method.outer_loss(student, teacher, x_natural, maximizer(x_natural), labels))
            losses[-1].backward()
            optimizer.step()
    return student, torch.stack(losses).mean().item()


def test_lightning_warns_of_nothing_but_its_own_use_of_torch(recwarn):
    batches = Trimmed(digits.training_batches()), Trimmed(digits.evaluation_batches())
    student, teacher = load_model("cnn-2-s1", in_channels=1), load_model("cnn-4-s1", in_channels=1)
    module = lightning_module.RobustDistillation(student, teacher, "adaad", INNER)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning_module.pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(module, *batches)
    # Lightning's copy of a function of torch asks for a class that torch 2.14 deprecates.
    foreign = [warning for warning in recwarn if "LeafSpec" not in str(warning.message)]
    assert [str(warning.message) for warning in foreign] == []
    assert teacher.training is False
    assert [name for name in module.state_dict() if not name.startswith("student.")] == []


class Trimmed(list):
    """The first two batches of a loader."""

    def __init__(self, batches):
        super().__init__(islice(batches, 2))


@pytest.fixture
def lightning_runs(one_layout) -> list:
    """Returns a run in Lightning's default, inference mode, and a run in grad mode."""
    return [lightning_module.main(epochs=2, inference_mode=inference_mode) for inference_mode in (True, False)]


@pytest.mark.slow
def test_lightning_trains_and_evaluates_the_student_of_a_plain_loop_in_either_mode(lightning_runs):
    (trainer, student), (other_trainer, other_student) = lightning_runs
    assert trainer.callback_metrics == other_trainer.callback_metrics
    assert_same_network(student, other_student)
    assert trainer.callback_metrics["robust_accuracy"] > 0.45
    assert trainer.callback_metrics["natural_accuracy"] > trainer.callback_metrics["robust_accuracy"] + 0.1

    expected, loss = trained_without_a_library(epochs=2)
    assert_same_network(student, expected)
    assert trainer.callback_metrics["loss"].item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.slow
def test_accelerate_trains_the_student_of_a_plain_loop():
    losses, student = accelerate_loop.main(epochs=1)
    expected, loss = trained_without_a_library(epochs=1)
    assert_same_network(student, expected)
    assert losses == [pytest.approx(loss, rel=1e-5)]


@pytest.mark.slow
def test_a_student_of_timm_becomes_robust():
    losses, (natural, pgd20) = timm_student.main()
    assert losses[-1] < 0.7 * losses[0]
    assert natural.accuracy > 0.85
    assert pgd20.accuracy > 0.35


@pytest.mark.slow
def test_foolbox_and_our_evaluation_agree_on_robust_accuracy():
    accuracies = foolbox_evaluation.main()
    assert accuracies["fastadaad"] == pytest.approx(accuracies["foolbox"], abs=0.025)  # 9 of 360 images
    assert 0.4 < accuracies["fastadaad"] < accuracies["natural"] - 0.1


SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.name != "digits.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_each_script_is_short_has_a_row_in_the_table_and_guesses_no_device(script):
    source = script.read_text()
    assert len(source.splitlines()) <= 80
    assert not re.search(r"cuda|is_available|current_device", source)
    assert f"| [{script.name}]({script.name}) |" in (FOLDER / "README.md").read_text()


def test_all_scripts_are_tested_here():
    tested = {module.__name__ for module in globals().values() if inspect.ismodule(module)}
    assert {path.stem for path in SCRIPTS} <= tested
