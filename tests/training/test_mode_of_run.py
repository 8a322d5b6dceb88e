"""Mode auto of a training on the CPU: compiled if the run is long, counted in FLOPs."""

import logging
from dataclasses import replace

import pytest
import torch
from tiny_runs import save_teacher, tiny_run

from fastadaad import recipes
from fastadaad.config import Mode
from fastadaad.inner import compile_choice
from fastadaad.run_config import RunConfig
from fastadaad.training import build
from fastadaad.training.build import build_student, build_teacher, mode_of_run
from fastadaad.training.data import training_data

CPU = torch.device("cpu")
NUM_IMAGES = 2 * 4 * 64  # epochs, steps and images of tiny_run
LINE = "the run is long enough to gain by compiling"


def mode_of(config: RunConfig) -> Mode:
    data = training_data(config, CPU)
    teacher = None if config.teacher is None else build_teacher(config.teacher, data, CPU)
    return mode_of_run(config, data, build_student(config, data, CPU), teacher, CPU)


def flops_of(num_channels: int) -> int:
    """FLOPs of cnn-C-s1 on an 8x8 digit: three convolutions, the last two of stride 2, and a linear layer."""
    first, second, third = num_channels, 2 * num_channels, 4 * num_channels
    return 2 * (9 * first * 64 + 9 * first * second * 16 + 9 * second * third * 4 + 10 * third)


@pytest.fixture
def counted(monkeypatch) -> list[float]:
    """Lists the FLOPs that decide about a run, which then counts as long."""
    flops = []

    def long(count: float, networks: list, device: torch.device) -> bool:
        flops.append(count)
        return True

    monkeypatch.setattr(build, "is_worth_compiling", long)
    return flops


def test_a_long_run_compiles_and_logs_it(counted, caplog):
    with caplog.at_level(logging.INFO, logger="fastadaad"):
        assert mode_of(tiny_run()) == "compiled"
    assert caplog.messages[-1] == LINE
    # Two steps of a forward pass and a pixel gradient, and a training pass.
    assert counted == [NUM_IMAGES * (2 * 2 + 3) * flops_of(4)]


def test_the_teacher_counts_in_the_steps_that_go_through_it(counted, tmp_path):
    teacher = save_teacher(tmp_path / "teacher.safetensors")
    assert mode_of(tiny_run(method="adaad", teacher=teacher)) == "compiled"
    assert mode_of(tiny_run(method="ard", teacher=teacher)) == "compiled"
    student, its_teacher = flops_of(4), flops_of(6)
    through, beside = (2 * 2 + 3) * student + (2 * 2 + 1) * its_teacher, (2 * 2 + 3) * student + its_teacher
    assert counted == [NUM_IMAGES * through, NUM_IMAGES * beside]


@pytest.mark.parametrize(
    "changes", [{"deterministic": True}, {"mode": "eager"}, {"inner": replace(tiny_run().inner, student_eval=False)}]
)
def test_other_runs_stay_eager_without_a_count(counted, changes):
    assert mode_of(tiny_run(**changes)) == "eager"
    assert counted == []


def test_the_demo_is_short():
    assert mode_of(recipes.get("demo")) == "eager"


def test_a_short_run_is_eager_and_a_longer_one_compiles(monkeypatch):
    config = tiny_run()
    # The run of two epochs is just too short.
    run_s = NUM_IMAGES * 7 * flops_of(4) / compile_choice.RATE["cpu"]
    monkeypatch.setattr(compile_choice, "SECONDS_PER_LAYER", 1.01 * run_s / compile_choice.LEAST_MULTIPLE / 4)
    assert mode_of(config) == "eager"
    assert mode_of(replace(config, optim=replace(config.optim, epochs=3))) == "compiled"
