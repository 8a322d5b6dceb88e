"""Damaged files are read, or refused in one line that names the file: no crash, no hang, no memory above the bound.

worker.py has the bounds. `FASTADAAD_FUZZ_CASES=10000 FASTADAAD_FUZZ_SEED=1 pytest tests/fuzz`, for example, tries more.
"""

import os
from collections.abc import Iterator

import pytest
from harness import Worker, faults
from targets import TARGETS

NUM_RANDOM = int(os.environ.get("FASTADAAD_FUZZ_CASES", "200"))  # per file, in addition to the cases of its format
SEED = int(os.environ.get("FASTADAAD_FUZZ_SEED", "0"))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Yields the process that reads."""
    worker = Worker("targets")
    yield worker
    worker.close()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_files_are_read(worker, tmp_path, name):
    TARGETS[name].write(tmp_path)
    assert worker.read(name, tmp_path) == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_are_read_or_refused(worker, tmp_path, name):
    found, counts = faults(worker, name, TARGETS[name], tmp_path, seed=SEED, num_random=NUM_RANDOM)
    assert not found, "\n".join(found)
    assert counts["refused"] > sum(counts.values()) / 4  # otherwise they were hardly damaged
