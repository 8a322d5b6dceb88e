"""on_nonfinite=skip: a training with spoiled batches equals the training without them, bitwise."""

import copy
import itertools
import warnings
from functools import partial

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from recorded_graph import assert_replayable
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.training.nonfinite import UpdateGuard
from fastadaad.training.optimizers import LAMB, LARS

INNER = InnerConfig(num_steps=2, start="natural")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)


class CountsOnTheHost(torch.optim.SGD):
    """Optimiser that counts its steps in Python numbers, per group and per parameter, as some other libraries do."""

    def step(self) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        super().step()
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            self.state[parameter]["count"] = self.state[parameter].get("count", number) + 1


OPTIMIZERS = {
    "sgd": SGD,
    "sgd without momentum": partial(torch.optim.SGD, lr=0.05, fused=True),
    "sgd with dampening": partial(torch.optim.SGD, lr=0.05, momentum=0.9, dampening=0.5, foreach=True),
    "adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01, fused=True),
    "adamw, foreach": partial(torch.optim.AdamW, lr=0.01, foreach=True, amsgrad=True),
    "nadam": partial(torch.optim.NAdam, lr=0.01),
    "rprop": partial(torch.optim.Rprop, lr=0.01),
    "lars": partial(LARS, lr=1.0),
    "lamb": partial(LAMB, lr=0.01),
    "counts on the host": partial(CountsOnTheHost, lr=0.05, momentum=0.9),
}


class Training:
    """Steps, some of them spoiled by an image or by a gradient alone."""

    def __init__(self, make_optimizer=SGD, on_nonfinite: str = "skip", **settings) -> None:
        self.student, self.teacher = student_and_teacher()
        self.optimizer = make_optimizer(self.student.parameters())
        self.distiller = Distiller(
            self.student,
            self.teacher,
            optimizer=self.optimizer,
            on_nonfinite=on_nonfinite,
            **{"inner": INNER} | settings,
        )

    def step(self, seed: int, spoil: str | None = None) -> None:
        x_natural, labels = images_and_labels(seed=seed)
        if spoil == "image":
            x_natural[7, 1, 2, 3] = torch.nan
        hook = None
        if spoil == "gradient":
            hook = self.student[3].weight.register_hook(lambda gradient: gradient * torch.inf)
        self.distiller.step(x_natural, labels)
        if hook is not None:
            hook.remove()

    def state(self) -> list:
        """All values that a later step depends on."""
        kept = [dict(self.optimizer.state.get(parameter, {})) for parameter in self.student.parameters()]
        groups = [{**group, "params": None} for group in self.optimizer.param_groups]
        return [self.student.state_dict(), kept, groups, self.distiller._teacher_error.sums]


def assert_equal(value, wanted) -> None:
    """Asserts that nested values are equal, tensors bitwise."""
    assert type(value) is type(wanted)
    if isinstance(value, Tensor):
        assert torch.equal(value, wanted)
    elif isinstance(value, dict):
        assert value.keys() == wanted.keys()
        assert_equal(list(value.values()), list(wanted.values()))
    elif isinstance(value, list):
        assert len(value) == len(wanted)
        for one, other in zip(value, wanted, strict=True):
            assert_equal(one, other)
    else:
        assert value == wanted


def assert_skipped_without_trace(spoil: str, bad_steps: tuple[int, ...], **settings) -> None:
    """Compares a training of 4 batches with spoiled ones before `bad_steps` to a training without spoiled ones."""
    with_bad, without = Training(**settings), Training(**settings)
    for seed in range(4):
        if seed in bad_steps:
            before = copy.deepcopy(with_bad.state())
            with_bad.step(seed + 100, spoil)
            assert_equal(with_bad.state(), before)
        for training in (with_bad, without):
            training.step(seed)
    assert_equal(with_bad.state(), without.state())
    assert (with_bad.distiller.read_skipped(), without.distiller.read_skipped()) == (len(bad_steps), 0)
    first, _ = student_and_teacher()
    assert not torch.equal(first[0].weight, with_bad.student[0].weight)


@pytest.mark.filterwarnings("ignore:on_nonfinite=skip waits for the device")
@pytest.mark.parametrize("bad_steps", [(0,), (0, 2), (3,)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_state_of_the_optimiser_is_reverted(name, bad_steps):
    assert_skipped_without_trace("image", bad_steps, make_optimizer=OPTIMIZERS[name])


SETTINGS = {
    "micro-batches": {"micro_batch": 6},
    "awp": {"awp_gamma": 0.01},
    "clipped": {"grad_clip": 0.1},
    "student in train mode": {"inner": InnerConfig(num_steps=2, start="natural", student_eval=False)},
    "bf16": {"precision": PrecisionConfig(student="bf16", teacher="bf16")},
    "compiled": {"mode": "compiled", "compile_options": {"backend": "aot_eager"}},
    "refreshed teacher": {"teacher_policy": TeacherPolicy(kind="refreshed", every=2)},
    "pgd-at": {"method": "pgd-at"},
    "trades": {"method": "trades"},
}


@pytest.mark.parametrize("spoil", ["image", "gradient"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "compiled")) for name in SETTINGS]
)
def test_any_kind_of_step_is_reverted(name, spoil):
    torch._dynamo.reset()
    assert_skipped_without_trace(spoil, (0, 2), **SETTINGS[name])


def test_an_infinite_loss_in_fp16_leaves_the_running_statistics_unchanged():
    assert_skipped_without_trace("image", (2,), precision=PrecisionConfig(student="fp16"))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.filterwarnings("ignore:on_nonfinite=skip waits for the device")
def test_without_a_spoiled_step_it_trains_as_without_the_policy(name):
    skip, stop = (Training(OPTIMIZERS[name], on_nonfinite) for on_nonfinite in ("skip", "stop"))
    for seed, training in itertools.product(range(3), (skip, stop)):
        training.step(seed)
    assert_equal(skip.state(), stop.state())


def test_a_spoiled_step_that_is_not_reverted_is_detected():
    """Shows that the comparison can fail."""
    with pytest.raises(AssertionError):
        assert_skipped_without_trace("image", (2,), on_nonfinite="stop")


def test_numbers_on_the_host_make_it_wait_with_a_warning():
    training = Training(OPTIMIZERS["counts on the host"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        training.step(0)
    with pytest.warns(UserWarning, match="waits for the device at each step of CountsOnTheHost.*fused=True"):
        training.step(1)
    quiet = Training()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            quiet.step(seed, "image")


def test_parameters_outside_the_optimiser_and_fixed_ones_are_unchanged():
    student, _ = student_and_teacher()
    student[0].weight.requires_grad_(False)
    optimizer = SGD(list(student[3].parameters()))
    guard = UpdateGuard(student, optimizer, [])
    wanted = copy.deepcopy(student.state_dict())
    loss = student(images_and_labels()[0]).sum()
    loss.backward()
    optimizer.step()
    assert not torch.equal(student[3].weight, wanted["3.weight"])
    guard.revert_if(torch.tensor(True))
    assert_equal(student.state_dict(), wanted)
    assert not optimizer.state


def test_the_guard_can_be_captured():
    network = nn.BatchNorm1d(3)
    optimizer = SGD(network.parameters())
    x, spoiled, total = torch.randn(5, 3), torch.tensor(False), torch.zeros(2)

    def step() -> Tensor:
        guard = UpdateGuard(network, optimizer, [total])
        optimizer.zero_grad()
        with torch.enable_grad():
            network(x).square().sum().backward()
        optimizer.step()
        total.add_(1)
        guard.revert_if(spoiled)
        return total

    step()  # creates the optimiser's state before the recording
    momenta = [optimizer.state[parameter]["momentum_buffer"] for parameter in network.parameters()]
    static = [x, spoiled, total, *network.parameters(), *network.buffers(), *momenta]
    with torch.no_grad():  # a record holds no grad mode
        assert_replayable(step, static, changes=[lambda: spoiled.fill_(True), lambda: spoiled.fill_(False)])
