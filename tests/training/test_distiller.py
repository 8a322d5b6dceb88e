"""A training step against a plain restatement, eager against compiled, and a method written as a row."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from networks import images_and_labels, student_and_teacher
from plain import cross_entropy, fraction_equal, inner_loop, kl_to_teacher
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import Distiller, InnerConfig, ThreatModel, methods

INNER = InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=4, start="natural")
SETTINGS = {"norm": "linf", "epsilon": 8 / 255, "step_size": 2 / 255, "num_steps": 4}
NUM_STEPS = 3
ALL_METHODS = [*methods.METHODS, "adaad+igdm"]


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def train(student: nn.Module, teacher: nn.Module | None, method: str | methods.Method, num_steps=NUM_STEPS, **options):
    """Trains the student for num_steps steps and returns their losses."""
    distiller = Distiller(student, teacher, method=method, inner=INNER, optimizer=sgd(student), **options)
    return [distiller.step(*images_and_labels(seed=step)).loss.item() for step in range(num_steps)]


def kl_mean(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    return F.kl_div(student_logits.log_softmax(1), teacher_logits.softmax(1), reduction="batchmean")


def plain_adaad(student: nn.Module, teacher: nn.Module, clean_statistics: bool = True) -> list[float]:
    """The authors' loop: eval, attack, train, clean pass, loss at x_adv, update."""
    optimizer, losses = sgd(student), []
    teacher.eval()
    for step in range(NUM_STEPS):
        x_natural, _ = images_and_labels(seed=step)
        student.eval()
        x_adv = inner_loop(kl_to_teacher(student, teacher), x_natural, x_natural, **SETTINGS)
        student.train()
        optimizer.zero_grad()
        if clean_statistics:
            student(x_natural)
        loss = kl_mean(student(x_adv), teacher(x_adv).detach())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def plain_pgd_at(student: nn.Module) -> list[float]:
    optimizer, losses = sgd(student), []
    for step in range(NUM_STEPS):
        x_natural, labels = images_and_labels(seed=step)
        student.eval()
        x_adv = inner_loop(cross_entropy(student, labels), x_natural, x_natural, **SETTINGS)
        student.train()
        optimizer.zero_grad()
        loss = F.cross_entropy(student(x_adv), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_network(network: nn.Module, expected: nn.Module, atol: float = 2e-5) -> None:
    for (name, tensor), wanted in zip(network.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, wanted, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("clean_statistics", [True, False])
def test_adaad_trains_as_the_plain_loop(clean_statistics):
    student, teacher = student_and_teacher()
    plain_student, plain_teacher = copy.deepcopy(student), copy.deepcopy(teacher)
    losses = train(student, teacher, methods.get("adaad", clean_statistics=clean_statistics))
    expected = plain_adaad(plain_student, plain_teacher, clean_statistics)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert_same_network(student, plain_student)


def test_pgd_at_trains_as_the_plain_loop():
    student, _ = student_and_teacher()
    plain_student = copy.deepcopy(student)
    losses = train(student, None, "pgd-at")
    assert losses == pytest.approx(plain_pgd_at(plain_student), rel=1e-4)
    assert_same_network(student, plain_student)


def test_the_teacher_is_unchanged_and_gets_no_gradient():
    student, teacher = student_and_teacher()
    teacher[1].eval()
    before = copy.deepcopy(teacher)
    train(student, teacher, "adaad")
    assert_same_network(teacher, before, atol=0)
    for (name, module), wanted in zip(teacher.named_modules(), before.modules(), strict=True):
        assert module.training == wanted.training, name
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


def test_a_frozen_batch_norm_of_a_student_in_train_mode_stays_frozen():
    student, teacher = student_and_teacher()
    student[1].eval()
    frozen = copy.deepcopy(dict(student[1].named_buffers()))
    moving = student[4].running_mean.clone()
    train(student, teacher, "adaad", num_steps=1)
    assert not student[1].training
    assert all(torch.equal(buffer, frozen[name]) for name, buffer in student[1].named_buffers())
    assert not torch.equal(student[4].running_mean, moving)


def test_a_student_in_eval_mode_is_trained_in_train_mode():
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    train(student.eval(), teacher, "adaad", num_steps=1)
    train(expected, teacher, "adaad", num_steps=1)
    assert student.training
    assert_same_network(student, expected, atol=0)


def test_a_parameter_that_the_user_fixed_stays_fixed():
    student, teacher = student_and_teacher()
    student[0].weight.requires_grad_(False)
    before = student[0].weight.clone()
    train(student, teacher, "adaad")
    assert torch.equal(student[0].weight, before)
    assert not student[0].weight.requires_grad
    assert student[3].weight.grad is not None


@pytest.mark.parametrize("method", ["adaad", "rslad", "adaad+igdm"])
def test_a_method_without_labels_trains_the_same_student_with_and_without_them(method):
    student, teacher = student_and_teacher()
    x_natural, labels = images_and_labels()
    other_student = copy.deepcopy(student)
    without = Distiller(student, teacher, method=method, inner=INNER, optimizer=sgd(student)).step(x_natural)
    with_labels = Distiller(other_student, teacher, method=method, inner=INNER, optimizer=sgd(other_student))
    with_labels = with_labels.step(x_natural, labels)
    assert torch.equal(without.x_adv, with_labels.x_adv)
    assert torch.equal(without.loss, with_labels.loss)
    assert_same_network(student, other_student, atol=0)


@pytest.mark.parametrize("method", [name for name in ALL_METHODS if methods.get(name).needs_labels])
def test_a_method_with_labels_requires_them(method):
    student, teacher = student_and_teacher()
    x_natural, _ = images_and_labels()
    with pytest.raises(ValueError, match=rf"labels are missing: method {re.escape(method)} needs them"):
        Distiller(student, teacher, method=method, optimizer=sgd(student)).step(x_natural)


def test_the_result_holds_no_graph():
    student, teacher = student_and_teacher()
    result = Distiller(student, teacher, inner=INNER, optimizer=sgd(student)).step(*images_and_labels())
    assert not result.loss.requires_grad
    assert not result.x_adv.requires_grad


@pytest.mark.parametrize("method", ALL_METHODS)
def test_a_step_does_not_make_the_host_wait(method):
    student, teacher = student_and_teacher()
    distiller = Distiller(student, teacher, method=method, inner=INNER, optimizer=sgd(student))
    batch = images_and_labels()
    distiller.step(*batch)
    with HostSyncWatch() as watch:
        distiller.step(*batch)
    assert watch.seen == []


def test_under_autocast_every_parameter_gets_its_gradient():
    """The clean pass runs without gradient first: its bf16 copies of the weights must not serve the pass with one."""
    student, teacher = student_and_teacher()
    expected = copy.deepcopy(student)
    train(expected, teacher, "adaad", num_steps=1)
    with torch.autocast("cpu", torch.bfloat16):
        train(student, teacher, "adaad", num_steps=1)
    for (name, parameter), wanted in zip(student.named_parameters(), expected.parameters(), strict=True):
        similarity = F.cosine_similarity(parameter.grad.flatten(), wanted.grad.flatten(), dim=0)
        assert similarity > 0.9, name


class CountingBackend:
    """Backend aot_eager that counts its graphs."""

    def __init__(self) -> None:
        self.num_graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        from torch._dynamo.backends.debugging import aot_eager

        self.num_graphs += 1
        return aot_eager(graph, inputs)


# Options whose losses change with the epoch, so that four epochs cover all cases.
EPOCH_OPTIONS = {"introspection_begin": 2, "igdm_ramp_epochs": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_METHODS)
def test_compiled_steps_equal_eager_ones_and_compile_seldom(name):
    torch._dynamo.reset()
    backend = CountingBackend()
    options = {option: value for option, value in EPOCH_OPTIONS.items() if option in methods.get(name).reads}
    method = methods.get(name, **options)
    student, teacher = student_and_teacher()
    compiled_student = copy.deepcopy(student)
    eager = Distiller(student, teacher, method=method, inner=INNER, optimizer=sgd(student), mode="eager")
    compiled = Distiller(
        compiled_student,
        teacher,
        method=method,
        inner=INNER,
        optimizer=sgd(compiled_student),
        mode="compiled",
        compile_options={"backend": backend},
    )
    for epoch in range(4):
        for batch in range(2):
            images = images_and_labels(seed=2 * epoch + batch)
            for network in (student, compiled_student):
                network.eval()  # as an evaluation between epochs may leave it
            results = [distiller.step(*images, epoch=epoch) for distiller in (eager, compiled)]
            assert results[1].loss.item() == pytest.approx(results[0].loss.item(), rel=1e-3, abs=1e-4)
            assert fraction_equal(results[1].x_adv, results[0].x_adv) >= 0.99
        if not options:
            assert backend.num_graphs == 2, f"epoch {epoch}"  # the inner step and the outer loss
    # With an epoch in the loss: one graph with the first epoch as a constant, one with any epoch, and one for each side
    # of introspection_begin or of the end of the ramp.
    assert backend.num_graphs <= 5
    assert_same_network(compiled_student, student, atol=1e-3)


@pytest.mark.slow
def test_steps_compiled_by_inductor_equal_eager_ones():
    student, teacher = student_and_teacher()
    compiled_student = copy.deepcopy(student)
    losses = train(student, teacher, "adaad")
    compiled_losses = train(compiled_student, teacher, "adaad", mode="compiled")
    assert compiled_losses == pytest.approx(losses, rel=1e-3)
    assert_same_network(compiled_student, student, atol=1e-3)


def test_auto_is_eager_without_a_gpu_and_an_unknown_mode_is_refused():
    student, teacher = student_and_teacher()
    assert Distiller(student, teacher, optimizer=sgd(student)).mode == "eager"
    with pytest.raises(ValueError, match="mode is 'fast': choose eager, compiled, graph or auto"):
        Distiller(student, teacher, optimizer=sgd(student), mode="fast")
    with pytest.raises(ValueError, match="mode graph needs a CUDA device and the student is on cpu: set mode=compiled"):
        Distiller(student, teacher, optimizer=sgd(student), mode="graph")
