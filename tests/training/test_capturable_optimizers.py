"""Captured steps of torch's optimisers equal their eager ones, with the recorder in place of a CUDA graph."""

import copy
import importlib

import pytest
import torch
from recorded_graph import record_with_make_fx
from torch import Tensor, nn, optim

from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.training import capturable_optimizer
from fastadaad.training.capturable_optimizer import CapturableOptimizer

NUM_STEPS = 6
WITH_OPTION = ["adadelta", "adam", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop"]

ADMITTED = {
    "SGD": (optim.SGD, {"fused": True, "momentum": 0.9, "weight_decay": 0.01}),
    "Adagrad": (optim.Adagrad, {"fused": True}),
    "Adam fused": (optim.Adam, {"fused": True, "weight_decay": 0.01}),
    "AdamW fused": (optim.AdamW, {"fused": True, "amsgrad": True}),
    "Adam": (optim.Adam, {"foreach": True}),
    "Adam alone": (optim.Adam, {"foreach": False}),
    "AdamW": (optim.AdamW, {"foreach": True, "amsgrad": True}),
    "Adadelta": (optim.Adadelta, {"foreach": True}),
    "Adamax": (optim.Adamax, {"foreach": True}),
    "Adamax alone": (optim.Adamax, {"foreach": False}),
    "RAdam": (optim.RAdam, {"foreach": True}),
    "RAdam alone": (optim.RAdam, {"foreach": False}),
    "RMSprop": (optim.RMSprop, {"foreach": True, "momentum": 0.9, "centered": True}),
}


@pytest.fixture(autouse=True)
def cpu_as_gpu(monkeypatch):
    """torch's optimisers accept `capturable` on the CPU, and demand it in a step, as in a capture on CUDA."""
    monkeypatch.setattr(capturable_optimizer, "CAPTURABLE_DEVICES", ("cpu",))
    for name in WITH_OPTION:
        module = importlib.import_module(f"torch.optim.{name}")
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda supports_xla=True: ["cpu"])


def check_as_in_a_capture(optimizer: optim.Optimizer) -> None:
    """torch's check in a capture: `capturable` in every group, of every optimiser that has the option."""
    if any("capturable" in group for group in optimizer.param_groups):
        assert all(group["capturable"] for group in optimizer.param_groups)


class Problem:
    """Two parameters in two groups, and a step that moves both along the gradient of a loss."""

    def __init__(self, kind: type, settings: dict, captured: bool, state: dict | None = None) -> None:
        self.weights = [nn.Parameter(torch.linspace(-1, 1, 8)), nn.Parameter(torch.ones(2, 4))]
        groups = [{"params": [weight], "lr": rate} for weight, rate in zip(self.weights, (1.0, 0.5), strict=True)]
        self.optimizer = kind(groups, **settings)
        if state is not None:
            self.optimizer.load_state_dict(copy.deepcopy(state))
        self.capturable, self.step = None, self._step
        if captured:
            self.capturable = CapturableOptimizer(self.optimizer)
            self.step = CapturedCall(self._step, state=self.capturable.state, record=record_with_make_fx)

    def _step(self, x: Tensor) -> Tensor:
        one, two = self.weights
        optimizer = self.capturable or self.optimizer
        optimizer.zero_grad()
        loss = (one.sin() * x).square().sum() + (two * x.view(2, 4)).square().sum()
        loss.backward()
        optimizer.step()
        return loss.detach()

    def train(self) -> list[Tensor]:
        for number in range(NUM_STEPS):
            for group in self.optimizer.param_groups:
                group["lr"] = (8 - number) / 256  # exact in fp32, as its tensor is
            if self.capturable:
                self.capturable.refresh()
            self.step(torch.full((8,), 1 + number / NUM_STEPS))
        return [weight.detach() for weight in self.weights]


@pytest.mark.parametrize("name", ADMITTED)
def test_a_captured_optimizer_trains_as_the_eager_one(name):
    kind, settings = ADMITTED[name]
    captured, eager = (Problem(kind, settings, captured) for captured in (True, False))
    captured.optimizer.register_step_pre_hook(lambda optimizer, *_: check_as_in_a_capture(optimizer))
    before = copy.deepcopy(captured.weights)
    for found, expected, first in zip(captured.train(), eager.train(), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert (found - first).abs().min() > 1e-4
    assert not any(group.get("capturable") for group in captured.optimizer.param_groups)


def test_the_check_fails_without_the_option():
    problem = Problem(*ADMITTED["Adam"], captured=False)
    problem.optimizer.register_step_pre_hook(lambda optimizer, *_: check_as_in_a_capture(optimizer))
    with pytest.raises(AssertionError):
        problem.train()


def test_counts_of_a_resumed_state_are_moved_to_the_parameters():
    """Without `capturable`, torch keeps the counts on the CPU; here on meta, and the parameters on the CPU."""
    problem = Problem(*ADMITTED["Adam"], captured=False)
    problem.train()
    moved = []

    class Count(Tensor):
        """Count that seems to be on another device."""

        device = torch.device("meta")

        def to(self, device: torch.device) -> Tensor:
            moved.append(device)
            return self.as_subclass(Tensor)

    for state in problem.optimizer.state.values():
        state["step"] = state["step"].as_subclass(Count)
    CapturableOptimizer(problem.optimizer)
    assert moved == [torch.device("cpu")] * 2
    assert [state["step"].item() for state in problem.optimizer.state.values()] == [NUM_STEPS] * 2


@pytest.mark.parametrize("captured", [True, False])
def test_a_resumed_optimizer_continues_with_its_state(captured):
    first = Problem(*ADMITTED["Adam"], captured=False)
    first.train()
    resumed = Problem(*ADMITTED["Adam"], captured, state=first.optimizer.state_dict())
    resumed.train()
    assert {state["step"].item() for state in resumed.optimizer.state.values()} == {2 * NUM_STEPS}


@pytest.mark.parametrize("kind", [optim.NAdam, optim.ASGD, optim.Rprop])
def test_an_optimizer_whose_state_does_not_begin_as_zeros_is_refused(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__} does not begin as zeros.*: set mode=compiled"):
        Problem(kind, {}, captured=True)


@pytest.mark.parametrize("kind", [optim.Adadelta, optim.RMSprop])
def test_an_optimizer_that_reads_its_rate_in_the_form_for_one_tensor_is_refused(kind):
    with pytest.raises(ValueError, match=r"foreach=False reads its learning rate.*: construct it with foreach=True"):
        Problem(kind, {"foreach": False}, captured=True)
