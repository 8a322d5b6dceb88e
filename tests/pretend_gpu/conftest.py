"""Tests of the pretend GPU run on it alone: python -m pretend_gpu -m pytest tests/pretend_gpu."""

import os

import pytest

if "PRETEND_GPU" not in os.environ:
    collect_ignore_glob = ["test_*.py"]  # they import what is preloaded there


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the tests that passed on the pretend GPU, and the violations of CUDA's rules that were found."""
    if "PRETEND_GPU" in os.environ:
        passed = [report.nodeid for report in terminalreporter.stats.get("passed", [])]
        planted = [name for name in passed if "an_error" in name or "errors" in name or "is_found" in name]
        terminalreporter.write_line(
            f"{len(passed)} tests passed on the pretend GPU; {len(planted)} planted violations of rules were found"
        )
