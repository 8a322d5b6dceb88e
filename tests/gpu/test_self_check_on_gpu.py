"""Self-check on a CUDA device: every operation, the compiled and the captured step."""

from fastadaad.runtime import machine_cache
from fastadaad.training import self_check
from fastadaad.training.self_check import CHECKS


def test_every_check_passes_and_the_machine_key_names_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path))
    result = self_check.ensure_checked("cuda")
    assert result.failures == {}
    assert result.passed == CHECKS
    assert "driver " in machine_cache.machine_key("cuda")
