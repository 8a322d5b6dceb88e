"""The rules of captured functions on the CPU, with the recorder of recorded_graph.py in place of a CUDA graph."""

import copy
from collections.abc import Callable
from itertools import chain

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network
from plain import kl_to_teacher
from recorded_graph import assert_replayable, record_with_make_fx
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.runtime.cuda_graph import CapturedCall, record_cuda_graph, run_on_two_streams
from fastadaad.training.capturable_optimizer import CapturableOptimizer
from fastadaad.training.optimizers import LAMB

INNER = InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=2)
NUM_STEPS = 20


def schedule(step: int) -> float:
    """Learning rate that changes at every step and is exact in fp32."""
    return (32 - step) / 1024


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)


class Training:
    """A student, its optimizer and `step`: batch -> loss, x_adv; eager or replayed."""

    def __init__(self, *, method: str, captured: bool, make_optimizer: Callable = sgd) -> None:
        self.student, teacher = student_and_teacher()
        self.optimizer = make_optimizer(self.student)
        self.generator = torch.Generator().manual_seed(0)
        self.distiller = Distiller(
            self.student, teacher, method=method, inner=INNER, optimizer=self.optimizer, mode="eager"
        )
        self.step, self.refresh = self.train_step, lambda: None
        if captured:
            capturable = CapturableOptimizer(self.optimizer)
            self.distiller.optimizer, self.refresh = capturable, capturable.refresh
            self.step = CapturedCall(
                self.train_step,
                state=[*capturable.state, *self.student.buffers()],
                generators=[self.generator],
                record=record_with_make_fx,
            )

    def train_step(self, x_natural: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        result = self.distiller.step(x_natural, labels, generator=self.generator)
        return result.loss, result.x_adv

    def train(self, num_steps: int = NUM_STEPS, last_batch_size: int = 16) -> list[tuple[Tensor, Tensor]]:
        results = []
        for step in range(num_steps):
            for group in self.optimizer.param_groups:
                group["lr"] = schedule(step)
            self.refresh()
            if step == 10:
                with torch.no_grad():
                    self.student[0].weight.mul_(0.9)  # as loading a checkpoint does: in place
            batch_size = last_batch_size if step % 5 == 4 else 16
            loss, x_adv = self.step(*images_and_labels(batch_size, seed=step))
            results.append((loss.clone(), x_adv.clone()))
        return results


def assert_same_training(captured: Training, eager: Training, **arguments) -> None:
    expected = eager.train(**arguments)
    for step, (result, wanted) in enumerate(zip(captured.train(**arguments), expected, strict=True)):
        assert all(map(torch.equal, result, wanted)), f"step {step}"
    for (name, tensor), wanted in zip(
        captured.student.state_dict().items(), eager.student.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, wanted), name
    assert len({loss.item() for loss, _ in expected}) == len(expected)


@pytest.mark.parametrize("method", ["adaad", "rslad", "trades", "pgd-at", "saad"])
def test_replayed_training_steps_equal_eager_ones(method):
    assert_same_training(Training(method=method, captured=True), Training(method=method, captured=False))


def test_replayed_steps_of_an_optimizer_with_a_count_equal_eager_ones():
    training = [
        Training(
            method="pgd-at", captured=captured, make_optimizer=lambda student: LAMB(list(student.parameters()), lr=1.0)
        )
        for captured in (True, False)
    ]
    assert_same_training(*training)


@pytest.mark.slow
def test_a_smaller_batch_runs_uncaptured_and_warns_once():
    captured, eager = (Training(method="adaad", captured=captured) for captured in (True, False))
    with pytest.warns(UserWarning, match=r"\[16, 3, 8, 8\].*called with \[5, 3, 8, 8\].*drop the last") as warned:
        assert_same_training(captured, eager, last_batch_size=5)
    assert len(warned) == 1
    assert captured.step.num_uncaptured_calls == 4


def test_a_learning_rate_without_refresh_is_frozen():
    """Shows that assert_same_training can fail."""
    captured, eager = (Training(method="pgd-at", captured=captured) for captured in (True, False))
    captured.refresh = lambda: None
    with pytest.raises(AssertionError, match="step 1"):
        assert_same_training(captured, eager)


def test_a_schedule_sees_numbers_and_a_capture_sees_tensors():
    network = tiny_network(1)
    optimizer = CapturableOptimizer(sgd(network))
    optimizer.optimizer.param_groups[0]["lr"] = 0.25
    optimizer.refresh()
    assert optimizer.learning_rates[0].item() == 0.25
    optimizer.step()
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, foreach=True), "SGD without fused=True"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5, fused=True), "dampening is not 0"),
        (lambda p: torch.optim.Adagrad(p), "Adagrad without fused=True.*: construct it with fused=True, or set mode"),
        (lambda p: torch.optim.Adafactor(p), "Adafactor reads its learning rate on the host.*: set mode=compiled"),
    ],
)
def test_an_optimizer_that_cannot_be_captured_is_refused(optimizer, message):
    with pytest.raises(ValueError, match=message):
        CapturableOptimizer(optimizer(tiny_network(1).parameters()))


def test_the_state_of_a_resumed_optimizer_is_kept():
    network = tiny_network(1)
    optimizer = sgd(network)
    network(images_and_labels()[0]).square().mean().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    CapturableOptimizer(optimizer)
    after = optimizer.state_dict()["state"].values()
    for state, kept in zip(before["state"].values(), after, strict=True):
        assert torch.equal(kept["momentum_buffer"], state["momentum_buffer"])
    assert before["state"][0]["momentum_buffer"].abs().sum() > 0


def test_outputs_are_overwritten_by_the_next_call_and_inputs_are_not():
    double = CapturedCall(lambda x: 2 * x, record=record_with_make_fx)
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])[:, 0]
    result = double(first)
    assert result.tolist() == [2, 4]
    assert double(second) is result
    assert result.tolist() == [6, 10]
    assert first.tolist() == [1, 2]


def test_a_capture_restores_state_and_generators():
    count, generator = torch.zeros(()), torch.Generator().manual_seed(3)

    def draw(x: Tensor) -> Tensor:
        return x + count.add_(1) + torch.empty(2).uniform_(generator=generator)

    captured = CapturedCall(draw, state=[count], generators=[generator], record=record_with_make_fx)
    results = [captured(torch.zeros(2)).clone() for _ in range(3)]
    assert count.item() == 3
    generator.manual_seed(3)
    expected = [number + 1 + torch.empty(2).uniform_(generator=generator) for number in range(3)]
    assert all(map(torch.equal, results, expected))


def test_a_replay_increments_the_version_counters_of_the_state():
    """Folded copies and other caches are refreshed by these counters."""
    count = torch.zeros(())
    captured = CapturedCall(lambda x: x + count.add_(1), state=[count], record=lambda run, *_: lambda: None)
    captured(torch.zeros(1))
    version = count._version
    captured(torch.zeros(1))
    assert count._version > version


def test_a_failed_capture_restores_the_state():
    count = torch.zeros(())

    def read(x: Tensor) -> Tensor:
        return x if count.add_(1) > 0 else -x

    with pytest.raises(RuntimeError, match="tracing tensor"):
        CapturedCall(read, state=[count], record=record_with_make_fx)(torch.ones(1))
    assert count.item() == 0


def test_a_weight_in_the_cache_of_autocast_is_not_frozen():
    layer, x = nn.Linear(4, 4), torch.ones(2, 4)
    captured = CapturedCall(lambda x: layer(x), record=record_with_make_fx)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
        captured(x)
        assert torch.is_autocast_cache_enabled()
    with torch.no_grad():
        layer.weight.mul_(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(captured(x), layer(x))


def test_a_cuda_graph_is_refused_on_the_cpu():
    with pytest.raises(ValueError, match="inputs are on cpu, and CUDA graphs need a CUDA device: set mode=eager"):
        CapturedCall(lambda x: x)(torch.zeros(1))
    with pytest.raises(ValueError, match="on cpu"):
        record_cuda_graph(lambda: None, torch.device("cpu"))


def test_two_streams_on_the_cpu_run_one_after_the_other():
    student, teacher = student_and_teacher()
    x = images_and_labels()[0]
    outputs = run_on_two_streams(x.device, lambda: student.eval()(x), lambda: teacher.eval()(x))
    assert torch.equal(outputs[0], student(x))
    assert torch.equal(outputs[1], teacher(x))


# Planted mistakes that a graph would freeze.

WEIGHT = torch.tensor([2.0, -1.0, 3.0])


def planted(change: Callable[..., Tensor]) -> Callable[[], Tensor]:
    return lambda: change(WEIGHT)


class Reassigned:
    def __init__(self) -> None:
        self.weight = WEIGHT.clone()

    def __call__(self) -> Tensor:
        self.weight = self.weight - 0.25 * WEIGHT
        return self.weight * 1


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda w: w * w[0].item(), "host read"),
        (lambda w: w * float(w.sum()), "host read"),
        (lambda w: w * 2 if w.sum() > 0 else w, "host read"),
        (lambda w: w * w.tolist()[0], "host read"),
        (lambda w: w * torch.from_numpy(w.numpy()), "host read"),
        (lambda w: w[w > 0], "host read"),
        (lambda w: w.nonzero(), "host read"),
        (lambda w: w.masked_select(w > 0), "host read"),
        (lambda w: w * torch.tensor(0.5), "frozen tensor"),
        (lambda w: w + torch.empty(3).normal_(generator=torch.Generator().manual_seed(0)), "not registered"),
    ],
    ids=["item", "float", "if", "tolist", "numpy", "mask", "nonzero", "masked_select", "constant", "generator"],
)
def test_code_that_a_graph_cannot_capture_is_detected(read, message):
    with pytest.raises(AssertionError, match=message):
        assert_replayable(planted(read), [WEIGHT])


def test_a_python_learning_rate_is_frozen_and_a_tensor_is_not():
    rate = {"number": 0.5, "tensor": torch.tensor(0.5)}

    def set_rate() -> None:
        rate["number"] = 0.25
        rate["tensor"].fill_(0.25)

    static = [WEIGHT, rate["tensor"]]
    assert_replayable(lambda: WEIGHT.sub_(rate["tensor"] * WEIGHT), static, changes=[set_rate])
    rate["number"] = 0.5
    with pytest.raises(AssertionError, match="frozen: after 1 changes"):
        assert_replayable(lambda: WEIGHT.sub_(rate["number"] * WEIGHT), static, changes=[set_rate])


def test_a_parameter_that_is_replaced_is_frozen_and_one_that_is_written_to_is_not():
    layer = nn.Linear(3, 2)

    def replace() -> None:
        layer.weight = nn.Parameter(2 * layer.weight.detach())

    def write() -> None:
        with torch.no_grad():
            layer.weight.mul_(2)

    static = [WEIGHT, *layer.parameters()]
    assert_replayable(lambda: layer(WEIGHT), static, changes=[write])
    with pytest.raises(AssertionError, match="frozen: after 1 changes"):
        assert_replayable(lambda: layer(WEIGHT), static, changes=[replace])
    with pytest.raises(AssertionError, match="frozen"):
        assert_replayable(Reassigned(), static)


def tensors_of(maximizer: InnerMaximizer, x_natural: Tensor) -> list[Tensor]:
    """Returns the tensors of the networks that the inner loop runs, with the present weights."""
    with maximizer.networks(x_natural) as networks:
        return [tensor for network in networks for tensor in chain(network.parameters(), network.buffers())]


@pytest.mark.parametrize("start", ["gaussian", "uniform", "natural"])
def test_the_inner_loop_is_replayable(start):
    student, teacher = student_and_teacher()
    generator = torch.Generator().manual_seed(0)
    inner = InnerConfig(threat_model=INNER.threat_model, step_size=2 / 255, num_steps=2, start=start)
    maximizer = InnerMaximizer(student, teacher, inner=inner)
    x_natural = images_and_labels()[0]

    def train_a_little() -> None:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(0.9)
        tensors_of(maximizer, x_natural)

    # Folded copies are refreshed outside of the captured loop.
    with maximizer.networks(x_natural) as networks:
        assert_replayable(
            lambda: maximizer._maximize(networks, x_natural, None, generator).x_adv,
            [x_natural, *tensors_of(maximizer, x_natural)],
            generators=[generator],
            changes=[train_a_little, lambda: x_natural.mul_(0.5)],
        )


@pytest.mark.parametrize("capturable", [True, False])
def test_an_outer_step_is_replayable_if_its_optimizer_is_capturable(capturable):
    student, teacher = student_and_teacher()
    teacher.eval().requires_grad_(False)
    wrapped = CapturableOptimizer(sgd(student))
    optimizer, x = wrapped if capturable else wrapped.optimizer, images_and_labels()[0]

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = kl_to_teacher(student, teacher)(x)
        loss.backward()
        optimizer.step()
        return loss.detach()

    def set_rate() -> None:
        wrapped.optimizer.param_groups[0]["lr"] = 0.125
        wrapped.refresh()

    networks = chain(student.buffers(), teacher.parameters(), teacher.buffers())
    static = [x, *networks, *wrapped.state, *wrapped.learning_rates]
    if capturable:
        assert_replayable(step, static, changes=[set_rate])
    else:
        with pytest.raises(AssertionError, match="frozen: after 1 changes"):
            assert_replayable(step, static, changes=[set_rate])
