"""Settings of all tests. Without a GPU, Triton kernels run in Triton's interpreter, chosen before its import."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def own_machine_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the tests out of the user's cache of fastadaad. Compiled graphs stay for the next run of the tests."""
    os.environ["FASTADAAD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    graphs = Path(tempfile.gettempdir()) / f"fastadaad-tests-compile-{os.getuid()}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(graphs))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Lets the processes of pytest-xdist start with the files that hold slow tests, so that they end together."""
    if hasattr(config, "workerinput"):
        slow_files = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow_files)


def pytest_report_header() -> str:
    """Names the device of tests/gpu; the processes of pytest-xdist do not report what they deselect."""
    if "PRETEND_GPU" in os.environ:
        return "tests/gpu runs on the pretend GPU"
    return "" if torch.cuda.is_available() else "tests/gpu is not run here: no CUDA device"
