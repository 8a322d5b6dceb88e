"""Freed memory stays in the process: the pages of a block are faulted in once."""

import ctypes
import subprocess
import sys

import pytest

from fastadaad import cli
from fastadaad.runtime import host_memory
from fastadaad.runtime.host_memory import keep_freed_memory

# Page faults of a tensor of 64 MiB after 19 others, which were freed: malloc needs some to find a fitting block.
FAULTS = """
import resource, torch
from fastadaad.runtime.host_memory import keep_freed_memory
if {kept}:
    assert keep_freed_memory()
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kept: bool, monkeypatch) -> int:
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    program = FAULTS.format(kept=kept)
    return int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)


def test_a_tensor_takes_the_memory_of_earlier_ones(monkeypatch):
    without, kept = (page_faults(kept, monkeypatch) for kept in (False, True))
    assert without > 5  # pages of 4 KiB, or of 2 MiB
    assert kept < 0.1 * without


@pytest.mark.parametrize("variable", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX"])
def test_the_users_own_settings_of_malloc_stand(variable, monkeypatch):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("malloc was set"))
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: ctypes.Structure())
    assert not keep_freed_memory()


def test_the_command_line_keeps_freed_memory(monkeypatch):
    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append("kept"))
    assert cli.main(["recipes"]) == 0
    assert calls == ["kept"]
