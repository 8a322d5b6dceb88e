"""Presets of torch.compile: their options exist, reach every graph of a run, and compute what the default computes."""

import io
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from tiny_runs import save_teacher, tiny_run
from torch import Tensor

from fastadaad.config import CompilePreset
from fastadaad.run_config import OptimConfig
from fastadaad.runtime.compile import PRESETS, one_graph, preset_options
from fastadaad.training.trainer import Trainer


def trainer(folder, **changes) -> Trainer:
    config = tiny_run(
        method="adaad",
        teacher=save_teacher(folder / "teacher.safetensors"),
        optim=OptimConfig(epochs=1, learning_rate=0.05),
        layout="contiguous",
        **changes,
    )
    return Trainer(config, folder / "run", Console(file=io.StringIO(), width=200))


def test_every_preset_has_options_and_torch_knows_them_all():
    assert set(PRESETS) == set(get_args(CompilePreset))
    known = torch._inductor.config.get_config_copy()
    for options in PRESETS.values():
        for name, value in options.items():
            assert type(known[name]) is type(value), name
    assert preset_options("default") == {}


def test_the_options_of_the_preset_reach_the_inner_step_and_the_outer_loss(tmp_path, monkeypatch):
    given = []

    def compile_nothing(function, **options):
        given.append(options.get("options"))
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    for preset, options in (("long", PRESETS["long"]), ("default", None)):
        given.clear()
        trainer(tmp_path, mode="compiled", compile_preset=preset)
        assert given == [options] * 3  # two kinds of inner steps, the outer loss


def test_a_run_that_compiles_nothing_says_that_its_preset_has_no_effect(tmp_path):
    run = trainer(tmp_path, compile_preset="long")  # mode auto: a second on the CPU
    assert "compile_preset long changes nothing: the run is eager" in run.console.file.getvalue()
    assert "compile_preset" not in trainer(tmp_path).console.file.getvalue()


@pytest.mark.slow
def test_a_function_compiled_with_the_preset_for_long_runs_computes_the_same():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, 6, 6), torch.randn(4, 8, 1, 1)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight).relu().flatten(1) @ torch.ones(144, 3)

    compiled = one_graph(function, required=True, **preset_options("long"))
    torch.testing.assert_close(compiled(x, weight), function(x, weight))
