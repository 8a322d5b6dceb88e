"""Tests of this folder need a CUDA device: a real one, or the pretend GPU, on which `make test` runs them."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from fastadaad.runtime import machine_cache
from fastadaad.training.self_check import CHECKS
from fastadaad.training.self_check_result import SECTION, SelfCheckResult

ON_PRETEND_GPU = "PRETEND_GPU" in os.environ


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests of this folder without a CUDA device, and skips what no pretend GPU can run."""
    here = Path(__file__).parent
    own = [item for item in items if here in item.path.parents]
    if not torch.cuda.is_available():
        config.hook.pytest_deselected(items=own)
        items[:] = [item for item in items if item not in own]
    elif ON_PRETEND_GPU:
        for item in own:
            for marker in item.iter_markers("real_gpu"):
                item.add_marker(pytest.mark.skip(reason=f"needs a real GPU: {marker.args[0]}"))


@pytest.fixture(autouse=True, scope="session")
def checked_once(own_machine_cache: None) -> None:
    """Takes the self-check of the pretend GPU as passed: it takes a minute there, and has a test of its own."""
    if ON_PRETEND_GPU:
        result = SelfCheckResult(passed=CHECKS, failures={}, not_run={}, device="cuda", seconds=0.0)
        machine_cache.store(SECTION, machine_cache.machine_key("cuda"), asdict(result))
