"""Self-check of compiled and captured steps: they pass; frozen values and wrong gradients are detected."""

import re
from functools import partial

import pytest
import torch
from recorded_graph import record_with_make_fx
from torch import Tensor

from fastadaad.inner import maximizer as inner_maximizer
from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.training import graph_step
from fastadaad.training.self_check.steps import (
    captured_difference,
    compiled_difference,
    difference_over_steps,
    fraction_equal,
)


def compiled_by(backend) -> str | None:
    torch.compiler.reset()
    return compiled_difference("cpu", {"backend": backend})


def is_batch_of_images(x) -> bool:
    return isinstance(x, Tensor) and x.shape == (16, 3, 16, 16)


def test_a_correct_compiler_passes():
    assert compiled_by("eager") is None


@pytest.mark.slow
def test_inductor_passes():
    assert compiled_by("inductor") is None


@pytest.mark.slow
def test_a_compiled_step_with_frozen_weights_is_detected_after_their_update():
    def backend(graph, inputs):
        kept = [x.clone() if isinstance(x, Tensor) and not is_batch_of_images(x) else None for x in inputs]
        return lambda *given: graph(*(x if old is None else old for x, old in zip(given, kept, strict=True)))

    difference = compiled_by(backend)
    assert difference is not None
    assert difference.startswith("after an update of the weights in place: only ")


def test_a_compiled_step_that_confuses_samples_is_detected():
    def backend(graph, inputs):
        return lambda *given: graph(*(x.roll(1, 0) if is_batch_of_images(x) else x for x in given))

    difference = compiled_by(backend)
    assert difference is not None
    assert difference.startswith("first: only ")


def rerun(run, device, generators):
    return run


def run_once(run, device, generators):
    outputs = tuple(output.clone() for output in run())
    return lambda: outputs


def with_frozen_noise(run, device, generators):
    states = [generator.get_state() for generator in generators]

    def replay():
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return run()

    return replay


def with_extra_step(run, device, generators):
    def replay():
        run()
        return run()

    return replay


@pytest.fixture
def difference_by(monkeypatch):
    """Returns the check of captured steps on the CPU, with a recorder in place of CUDA graphs."""
    monkeypatch.setattr(inner_maximizer, "resolve_mode", lambda mode, device_type: mode)

    def difference(record) -> str | None:
        monkeypatch.setattr(graph_step, "CapturedCall", partial(CapturedCall, record=record))
        return captured_difference("cpu", {"disable": True})  # make_fx cannot trace compiled functions

    return difference


@pytest.mark.parametrize("record", [rerun, record_with_make_fx])
def test_a_correct_capture_passes(record, difference_by):
    assert difference_by(record) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (run_once, "step 1: only 0.0% of features"),
        (with_frozen_noise, "step 2: only .* of x_adv"),
        (with_extra_step, "step 1"),
    ],
)
def test_a_wrong_capture_is_detected(record, message, difference_by):
    difference = difference_by(record)
    assert difference is not None
    assert re.match(message, difference)


class Descent:
    """A weight that follows its inputs by gradient descent with noise from its own generator."""

    def __init__(self, *, learning_rate: float | None = None, frozen_noise: bool = False) -> None:
        self.weight = torch.zeros(50)
        self.generator = torch.Generator().manual_seed(1)
        self.learning_rate = learning_rate
        self.noise = torch.randn(50, generator=torch.Generator().manual_seed(1)) if frozen_noise else None

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        noise = torch.randn(50, generator=self.generator) if self.noise is None else self.noise
        rate = inputs["learning_rate"] if self.learning_rate is None else self.learning_rate
        self.weight -= rate * (self.weight - inputs["goal"] + 0.1 * noise)
        return {"weight": self.weight}


def inputs() -> dict[str, Tensor]:
    return {"goal": torch.linspace(-1, 1, 50), "learning_rate": torch.tensor(0.1)}


def test_two_equal_programs_pass_and_keep_the_inputs():
    given = inputs()
    assert difference_over_steps(Descent(), Descent(), given) is None
    torch.testing.assert_close(given, inputs(), rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [{"learning_rate": 0.1}, {"frozen_noise": True}], ids=str)
def test_a_value_frozen_at_the_capture_is_detected_in_the_second_step(frozen):
    assert difference_over_steps(Descent(), Descent(**frozen), inputs()).startswith("step 2: only ")


def test_an_input_that_is_never_read_again_is_detected():
    captured = Descent()
    first = inputs()
    assert difference_over_steps(Descent(), lambda _: captured(first), inputs()).startswith("step 2: only ")


def test_nan_equals_nothing():
    x = torch.ones(4)
    assert fraction_equal(x, x) == 1.0
    assert fraction_equal(x.where(torch.arange(4) > 0, torch.nan), x) == 0.75
    assert fraction_equal(torch.full((4,), torch.nan), torch.full((4,), torch.nan)) == 0.0
