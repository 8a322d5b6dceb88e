"""Tests of this folder need a CUDA device; without one they are deselected, and the report counts them."""

from pathlib import Path

import pytest
import torch

_deselected = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        here = Path(__file__).parent
        _deselected[:] = [item for item in items if here in item.path.parents]
        items[:] = [item for item in items if here not in item.path.parents]
        config.hook.pytest_deselected(items=_deselected)


def pytest_report_collectionfinish() -> list[str]:
    return [f"GPU tests not run: {len(_deselected)} in tests/gpu, which need a CUDA device"] if _deselected else []
