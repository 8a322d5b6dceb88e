"""Tests of this folder need a CUDA device: a real one, or the pretend GPU, on which `make test` runs them."""

import os
from pathlib import Path

import pytest
import torch

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
