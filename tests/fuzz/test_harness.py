"""The harness detects each kind of fault, names the file and continues; a seed always gives the same files."""

import shutil
from collections import Counter
from collections.abc import Iterator

import harness
import pytest
from harness import Worker, faults
from mutations import LENGTHS, Field, damaged
from planted_targets import FAULTS, TARGETS


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    """Yields a worker with 0.5 CPU seconds and 2 seconds per read."""
    worker = Worker("planted_targets", 0.5, 2)
    yield worker
    worker.close()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_detected(worker, tmp_path, name):
    fault, _ = worker.read(name, tmp_path)
    assert fault.startswith(FAULTS[name][1])
    assert bool(fault) == (name not in ("none", "refused"))
    assert worker.read("none", tmp_path) == ("", "")


@pytest.mark.slow
def test_a_failed_allocation_of_torch_is_detected(tmp_path):
    worker = Worker("planted_targets")
    fault, _ = worker.read("torch", tmp_path)
    worker.close()
    assert fault.startswith("it asked for too much memory: PlantedError: file <- RuntimeError: ")


def test_the_file_that_caused_a_fault_is_kept(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "KEPT", tmp_path / "kept")
    folder = tmp_path / "files"
    folder.mkdir()
    found, counts = faults(worker, "no name", TARGETS["no name"], folder, seed=5, num_random=7)
    assert len(found) == 7
    assert counts == Counter(refused=7)
    kept = tmp_path / "kept" / "no name-part0-seed5-case3"
    assert found[3] == f"no name, file, seed 5, case 3, kept in {kept}: its message names no file: 'it is broken'"
    assert (kept / "file").read_bytes() == list(damaged(b"content", (), 5, 7))[3]
    assert (folder / "file").read_bytes() == b"content"
    shutil.rmtree(folder)


CONTENT = b"PK\x03\x04" + bytes(range(26)) + b"\x93NUMPY\x01\x00v\x00{'shape': (12,)}" + bytes(range(250)) * 2


def test_damaged_files_are_the_same_for_a_seed():
    first, again, other = (list(damaged(CONTENT, (Field(3, 8),), seed, 200)) for seed in (1, 1, 2))
    assert first == again
    assert first[-200:] != other[-200:]
    assert sum(content != CONTENT for content in first) > 0.95 * len(first)
    assert len(set(first)) > 0.8 * len(first)


def test_every_boundary_and_length_is_tried():
    found = set(damaged(CONTENT, (Field(100, 8, "big"),), 0, 0))
    for size in (100, 108, 8, 10, 18, 22, 26, 28, 30, 36, 37, 38, 40):
        assert CONTENT[:size] in found
    for value in LENGTHS:
        assert CONTENT[:100] + value.to_bytes(8, "big") + CONTENT[108:] in found
        assert CONTENT[:18] + (value % 2**32).to_bytes(4, "little") + CONTENT[22:] in found
        assert CONTENT[:38] + (value % 2**16).to_bytes(2, "little") + CONTENT[40:] in found
