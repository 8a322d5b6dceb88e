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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the tests that passed on the pretend GPU, and the violations of CUDA's rules that were found."""
    if "PRETEND_GPU" in os.environ:
        passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
        planted = [name for name in passed if "an_error" in name or "errors" in name or "is_found" in name]
        terminalreporter.write_line(
            f"{len(passed)} tests passed on the pretend GPU; {len(planted)} planted violations of rules were found"
        )
