"""Tests of the pretend GPU run on it alone: python -m pretend_gpu -m pytest tests/pretend_gpu."""

import os
from pathlib import Path

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the tests of this folder in any other process."""
    if "PRETEND_GPU" not in os.environ:
        own = [item for item in items if Path(__file__).parent in item.path.parents]
        config.hook.pytest_deselected(items=own)
        items[:] = [item for item in items if item not in own]
