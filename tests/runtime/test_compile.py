"""What is compiled is found again by the next process, and nothing is said that nobody needs."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from fastadaad.runtime import compile as compilation
from fastadaad.runtime.compile import COMPILE_CACHE_VARIABLE, compile_cache, keep_on_disk, one_graph

RUN = """
import io, json, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from dataclasses import replace
from rich.console import Console
from tiny_runs import save_teacher, tiny_run
from torch._dynamo.utils import counters
from fastadaad.run_config import OptimConfig
from fastadaad.training.trainer import Trainer

folder = Path({folder!r})
config = tiny_run(
    method="adaad", teacher=save_teacher(folder / "teacher.safetensors"), mode="compiled", layout="contiguous",
    optim=OptimConfig(epochs=1, learning_rate=0.2),
)
Trainer(config, folder / "run", Console(file=io.StringIO())).train()
counts = dict(counters["aot_autograd"]) | dict(counters["inductor"])
print(json.dumps({{name: count for name, count in counts.items() if "cache" in name}}))
"""


@pytest.fixture
def no_folder_chosen(monkeypatch, tmp_path):
    """Neither by the user nor by an earlier compilation; the machine's memory is in tmp_path / "memory"."""
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, "")  # so that what the test sets does not stay
    monkeypatch.delenv(COMPILE_CACHE_VARIABLE)
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path / "memory"))


@pytest.mark.slow
def test_the_second_start_of_a_compiled_run_compiles_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != COMPILE_CACHE_VARIABLE}
    environment |= {"FASTADAAD_CACHE": str(tmp_path / "memory"), "OMP_NUM_THREADS": "1"}

    def start() -> dict[str, int]:
        program = RUN.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
        process = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert "No CUDA runtime is found" not in process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    first, second = start(), start()
    assert first["autograd_cache_miss"] == first["autograd_cache_saved"] >= 2  # the inner step and the outer loss
    assert first["fxgraph_cache_miss"] >= 3  # the latter's backward pass is a graph of its own
    for count in ("autograd_cache_hit", "autograd_cache_bypass", "fxgraph_cache_hit", "fxgraph_cache_bypass"):
        assert first.get(count, 0) == 0, count
    assert second == {
        "autograd_cache_hit": first["autograd_cache_miss"],
        "fxgraph_cache_hit": first["fxgraph_cache_miss"],
    }
    assert list((tmp_path / "memory" / "compile" / "fxgraph").rglob("*"))


def test_torchs_own_caches_are_on():
    assert torch._inductor.config.fx_graph_cache
    assert torch._functorch.config.enable_autograd_cache


@pytest.mark.usefixtures("no_folder_chosen")
def test_compiling_goes_to_the_machines_memory(tmp_path):
    assert compile_cache() == tmp_path / "memory" / "compile"
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "memory" / "compile")
    assert compile_cache().is_dir()


def test_a_folder_that_the_user_chose_stays(monkeypatch, tmp_path):
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, str(tmp_path / "mine"))
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "mine")


@pytest.mark.usefixtures("no_folder_chosen")
def test_the_folder_that_torch_sets_when_it_is_imported_is_not_the_users_choice(tmp_path):
    os.environ[COMPILE_CACHE_VARIABLE] = default_cache_dir()
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "memory" / "compile")


@pytest.mark.usefixtures("no_folder_chosen")
def test_a_folder_that_cannot_be_made_is_said_and_left_to_torch(monkeypatch, tmp_path):
    (tmp_path / "memory").write_text("a file in its place")
    with pytest.warns(UserWarning, match=r"memory/compile cannot be made .*: .* temporary folder; set FASTADAAD_CACHE"):
        keep_on_disk()
    assert COMPILE_CACHE_VARIABLE not in os.environ


def test_only_the_message_about_a_missing_gpu_is_left_out(caplog):
    one_graph(torch.sin)
    logger = logging.getLogger("torch.utils.cpp_extension")
    one_graph(torch.cos)
    assert logger.filters.count(compilation._is_useful) == 1
    with caplog.at_level("WARNING"):
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
