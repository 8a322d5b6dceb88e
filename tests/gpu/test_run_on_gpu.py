"""Reports of a run on a CUDA device."""

import gc
import pickle
import re

import pytest
import torch
from tiny_runs import gpu_run, printed_lines

from fastadaad.config import PrecisionConfig
from fastadaad.runtime import device_memory
from fastadaad.runtime.peak_rates import peak_tflops
from fastadaad.runtime.progress import ImageProgress
from fastadaad.training import build
from fastadaad.training.self_check import CHECKS, SelfCheckResult

DEVICE, FP32 = torch.device("cuda", 0), PrecisionConfig.parse("fp32")


@pytest.fixture(autouse=True)
def checked_machine(monkeypatch):
    """A self-check that has passed: these tests are about the runs."""
    result = SelfCheckResult(passed=CHECKS, failures={}, not_run={}, device="cuda", seconds=0.0)
    monkeypatch.setattr(build, "ensure_checked", lambda device: result)


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_peak_of_reserved_memory_is_a_closing_line(tmp_path, mode):
    gc.collect()  # graphs of earlier tests
    torch.cuda.empty_cache()
    lines = printed_lines(gpu_run(tmp_path, mode=mode, precision=FP32), tmp_path / "run")
    (line,) = (line for line in lines if "peak memory" in line)
    peak = round(torch.cuda.max_memory_reserved() / 2**20)
    assert peak > 0
    found = re.fullmatch(r"peak memory: (\d+) MiB reserved on cuda:0(?:, (\d+) MiB of them by captured .*)?", line)
    assert int(found[1]) == peak
    if mode == "eager":
        assert int(found[2] or 0) == round(device_memory.captured_bytes(DEVICE) / 2**20)  # of other tests
    else:
        assert 0 < int(found[2]) < peak


def test_a_preset_of_options_reaches_a_captured_run(tmp_path):
    lines = printed_lines(gpu_run(tmp_path, mode="graph", precision=FP32, compile_preset="long"), tmp_path / "run")
    assert not [line for line in lines if "compile_preset" in line or "self-check" in line]
    assert [line for line in lines if "graph mode on cuda:0" in line]


def test_a_profile_on_cuda_comes_with_a_snapshot_of_the_memory(tmp_path):
    config = gpu_run(tmp_path, mode="eager", precision=FP32)
    lines = printed_lines(config, tmp_path / "run", profile_steps=2)
    for name in ("trace.json", "memory.pickle"):
        assert [line for line in lines if line.endswith(str(tmp_path / "run" / name))], lines
    snapshot = pickle.loads((tmp_path / "run" / "memory.pickle").read_bytes())
    frames = [frame["filename"] for event in snapshot["device_traces"][0] for frame in event["frames"]]
    assert any(name.endswith("distiller.py") for name in frames)
    before = len(torch.cuda.memory._snapshot()["device_traces"][0])
    torch.zeros(2**20, device=DEVICE)
    assert len(torch.cuda.memory._snapshot()["device_traces"][0]) == before  # nothing is recorded any more


def test_memory_of_a_graph_counts_as_captured_as_long_as_the_graph_lives():
    gc.collect()  # graphs of earlier tests
    torch.cuda.empty_cache()
    x = torch.zeros(2**20, device=DEVICE)
    before = device_memory.captured_bytes(DEVICE)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x + 1  # 4 MiB, in a segment of at least that size
    held = device_memory.captured_bytes(DEVICE) - before
    assert y.nbytes <= held <= 8 * y.nbytes
    del y, graph
    torch.cuda.empty_cache()
    assert device_memory.captured_bytes(DEVICE) == before


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_the_progress_line_shows_the_rate_and_its_share_of_the_cards_peak(tmp_path, mode, monkeypatch):
    notes = []
    advance = ImageProgress.advance
    monkeypatch.setattr(
        ImageProgress, "advance", lambda self, count, note=None: notes.append(note) or advance(self, count, note)
    )
    printed_lines(gpu_run(tmp_path, mode=mode, precision=FP32), tmp_path / "run")
    shown = [note for note in notes if note is not None]
    assert len(shown) == 2  # steps 3 and 6 of 8
    name = torch.cuda.get_device_name(DEVICE)
    share = r", \d+\.\d% of the fp32 peak" if peak_tflops(name) else ""
    for note in shown:
        assert re.fullmatch(rf"epoch \d/2  loss \S+  \S+ TFLOP/s{share}", note)
    if name == "Pretend A100":
        assert share
