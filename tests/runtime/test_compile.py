"""The next process finds compiled code in the cache, and torch's useless warning is dropped."""

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
    """Unsets the choice of the user and of an earlier compilation; the machine cache is tmp_path / "cache"."""
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, "")  # so that monkeypatch undoes what the test sets
    monkeypatch.delenv(COMPILE_CACHE_VARIABLE)
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
def test_the_second_start_of_a_compiled_run_compiles_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != COMPILE_CACHE_VARIABLE}
    environment |= {"FASTADAAD_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start() -> dict[str, int]:
        program = RUN.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
        process = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        assert "No CUDA runtime is found" not in process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    first, second = start(), start()
    assert first["autograd_cache_miss"] == first["autograd_cache_saved"] >= 2  # the inner step and the outer loss
    assert first["fxgraph_cache_miss"] >= 3  # the backward pass of the outer loss is a third graph
    for count in ("autograd_cache_hit", "autograd_cache_bypass", "fxgraph_cache_hit", "fxgraph_cache_bypass"):
        assert first.get(count, 0) == 0, count
    assert second == {
        "autograd_cache_hit": first["autograd_cache_miss"],
        "fxgraph_cache_hit": first["fxgraph_cache_miss"],
    }
    assert list((tmp_path / "cache" / "compile" / "fxgraph").rglob("*"))


def test_torchs_own_caches_are_on():
    assert torch._inductor.config.fx_graph_cache
    assert torch._functorch.config.enable_autograd_cache


@pytest.mark.usefixtures("no_folder_chosen")
def test_compiled_code_goes_to_the_machine_cache(tmp_path):
    assert compile_cache() == tmp_path / "cache" / "compile"
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "cache" / "compile")
    assert compile_cache().is_dir()


def test_a_folder_chosen_by_the_user_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, str(tmp_path / "mine"))
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "mine")


@pytest.mark.usefixtures("no_folder_chosen")
def test_the_default_folder_of_torch_does_not_count_as_the_users_choice(tmp_path):
    os.environ[COMPILE_CACHE_VARIABLE] = default_cache_dir()
    one_graph(torch.sin)
    assert os.environ[COMPILE_CACHE_VARIABLE] == str(tmp_path / "cache" / "compile")


@pytest.mark.usefixtures("no_folder_chosen")
def test_a_folder_that_cannot_be_made_warns_and_leaves_the_choice_to_torch(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    with pytest.warns(UserWarning, match=r"cache/compile cannot be made .*: .* temporary folder; set FASTADAAD_CACHE"):
        keep_on_disk()
    assert COMPILE_CACHE_VARIABLE not in os.environ


def test_only_the_message_about_a_missing_gpu_is_dropped(caplog):
    one_graph(torch.sin)
    logger = logging.getLogger("torch.utils.cpp_extension")
    one_graph(torch.cos)
    assert logger.filters.count(compilation._is_useful) == 1
    with caplog.at_level("WARNING"):
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
