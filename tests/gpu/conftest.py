"""Tests of this folder need a CUDA device; where there is none they are left out, and the report says how many."""

from pathlib import Path

import pytest
import torch

_left_out = []


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        here = Path(__file__).parent
        _left_out[:] = [item for item in items if here in item.path.parents]
        items[:] = [item for item in items if here not in item.path.parents]
        config.hook.pytest_deselected(items=_left_out)


def pytest_report_collectionfinish() -> list[str]:
    return [f"GPU tests not run: {len(_left_out)} in tests/gpu, for want of a CUDA device"] if _left_out else []
