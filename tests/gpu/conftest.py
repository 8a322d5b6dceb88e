"""Tests of this folder need a CUDA device. Without one they are deselected, and the report names the folder."""

from pathlib import Path

import pytest
import torch


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        here = Path(__file__).parent
        config.hook.pytest_deselected(items=[item for item in items if here in item.path.parents])
        items[:] = [item for item in items if here not in item.path.parents]
