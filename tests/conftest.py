"""Shared by all tests. Without a GPU, Triton kernels run in its interpreter, which must be chosen before its import."""

import os
import tempfile
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True, scope="session")
def machine_memory_of_its_own(tmp_path_factory) -> None:
    """Tests neither read nor write what the user's machine remembers; their compiled graphs last for the next run."""
    os.environ["FASTADAAD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir()) / "fastadaad-tests-compile"))
