"""Profile of some steps: the steps that were asked for, and no effect on the training."""

import io
import json
import re

import pytest
from rich.console import Console
from tiny_runs import tiny_run

from fastadaad.training.trainer import Trainer


def train(folder, **options) -> str:
    """Trains 8 steps and returns what is printed."""
    console = Console(file=io.StringIO(), width=300)
    Trainer(tiny_run(), folder, console, **options).train()
    return console.file.getvalue()


def traced_steps(folder) -> list[int]:
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    names = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"ProfilerStep#(\d+)", name)))


@pytest.mark.slow
def test_a_profile_holds_its_steps_and_changes_no_weight(tmp_path):
    text = train(tmp_path / "profiled", profile_steps=1)
    assert f"trace of steps 4 to 4, to open at https://ui.perfetto.dev: {tmp_path / 'profiled' / 'trace.json'}" in text
    assert traced_steps(tmp_path / "profiled") == [3]  # counted from 0: the first three are not in it
    events = json.loads((tmp_path / "profiled" / "trace.json").read_text())["traceEvents"]
    assert sum(event["name"] == "fastadaad::linf_step_" for event in events) == 2  # inner steps of one step
    assert "trace" not in train(tmp_path / "plain")
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("profiled", "plain")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_run_that_ends_early_leaves_the_steps_that_it_made(tmp_path):
    assert "trace of steps 4 to 8" in train(tmp_path, profile_steps=100)
    assert traced_steps(tmp_path) == [3, 4, 5, 6, 7, 8]  # the last one is what follows the run


def test_a_run_without_steps_after_the_warm_up_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("fastadaad.training.step_profiler.NUM_WARM_UP_STEPS", 8)
    assert "no profile was written: the run ended within the first 8 steps" in train(tmp_path, profile_steps=1)
    assert not (tmp_path / "trace.json").exists()
