"""The report about this machine, with planted packages in the places of the real and the wrong ones."""

import importlib
import io
import sys
from importlib import metadata

import pytest
import torch
from rich.console import Console

from fastadaad import ops
from fastadaad.cli import machine_report as doctor
from fastadaad.inner import layout
from fastadaad.runtime import machine_cache


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Puts an empty folder first on the import path, and forgets its modules after the test."""

    def planted() -> list[str]:
        return [name for name in sys.modules if name.partition(".")[0] == "nvidia"]

    for name in planted():  # torch has imported some of NVIDIA's; monkeypatch restores them
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in planted():
        del sys.modules[name]


def plant(site, path: str, content: str = "") -> None:
    (site / path).parent.mkdir(parents=True, exist_ok=True)
    (site / path).write_text(content)
    importlib.invalidate_caches()


def test_nvidias_dali_is_found(site):
    plant(site, "nvidia/__init__.py")
    plant(site, "nvidia/dali/__init__.py")
    assert doctor.dali_status() == "found"


def test_the_empty_dali_package_is_named(site):
    plant(site, "nvidia/__init__.py")
    plant(site, "nvidia_dali-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: nvidia-dali\nVersion: 0.0.1\n")
    status = doctor.dali_status()
    assert "empty decoy" in status
    assert "pip install 'fastadaad[dali]'" in status


def test_a_missing_dali_comes_with_the_command_that_installs_it(site):
    plant(site, "nvidia/__init__.py")
    assert doctor.dali_status() == "missing (optional): pip install 'fastadaad[dali]'"


def report(**options) -> str:
    console = Console(file=io.StringIO(), width=160)
    doctor.print_report(console, **options)
    return console.file.getvalue()


def test_the_report_names_versions_and_every_operation_with_its_backend():
    lines = report().splitlines()
    assert any("torch " in line and torch.__version__.partition("+")[0] in line for line in lines)
    for row in ops.report():
        assert any(all(word in line for word in (row.op, row.device, row.backend)) for line in lines), row


def test_the_compile_cache_comes_with_its_size(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "graphs"))
    assert doctor.compile_cache_status() == f"{tmp_path / 'graphs'}, 0 MiB"
    (tmp_path / "graphs" / "aa").mkdir(parents=True)
    (tmp_path / "graphs" / "aa" / "graph.py").write_bytes(bytes(3 * 2**20))
    assert doctor.compile_cache_status() == f"{tmp_path / 'graphs'}, 3 MiB"
    assert any("compile cache" in line and "3 MiB" in line for line in report().splitlines())


def test_a_package_that_is_not_installed_is_missing(monkeypatch):
    def version(package: str) -> str:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", version)
    assert "missing" in next(line for line in report().splitlines() if "tensorboard" in line)


def test_cached_layouts_are_counted_and_listed_on_request(monkeypatch):
    choice = layout.LayoutChoice(
        choice="contiguous", compiled_choice="contiguous", contiguous_ms=1.0, channels_last_ms=2.0,
        network="PlantedNet", shape=(1, 3, 8, 8), dtype="float32", hardware="a card",
    )  # fmt: skip
    entries = [machine_cache.Entry(key="planted", value=choice, date="2026-01-31")] * 1213
    monkeypatch.setattr(layout, "remembered_choices", lambda: entries)
    assert "PlantedNet" not in report()
    assert "cached layouts of networks: 1,213 (--layouts lists them)" in report()
    assert report(layouts=True).count("PlantedNet") == 1213


def test_the_report_begins_with_missing_kernels_and_their_reason(monkeypatch):
    rows = [row._replace(backend="reference", reason="not built") for row in ops.report()]
    monkeypatch.setattr(ops, "report", lambda: rows)
    first, *_ = report().splitlines()
    assert first.startswith("no C++ kernels (not built): operations on the CPU run in plain torch, which is slower")
    monkeypatch.setattr(ops, "report", lambda: [rows[0]._replace(backend="c++"), *rows[1:]])
    assert "no C++ kernels" not in report()


def test_the_summary_is_one_line_with_every_operation_of_the_device_in_use():
    summary = doctor.summarize_ops()
    assert "\n" not in summary
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert device in summary
    for row in ops.report():
        if row.device == device:
            assert row.op in summary
            assert row.backend in summary
