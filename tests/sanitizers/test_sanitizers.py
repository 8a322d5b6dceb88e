"""C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: all of their tests, and planted faults."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastadaad import ops

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
# Libraries to preload: the sanitizer, and the library that it needs to pass exceptions on.
PRELOADED = ("libasan.so", "libstdc++.so")


def _found(library: str) -> str | None:
    """Returns the path of the library in g++'s folders, or None."""
    path = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    return path if os.path.isabs(path) else None


def _missing() -> list[str]:
    programs = [name for name in ("g++", "cmake", "ninja") if shutil.which(name, path=PATH) is None]
    return programs or [name for name in (*PRELOADED, "libubsan.so") if _found(name) is None]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(_missing()), reason=f"{', '.join(_missing())} missing: install g++ with its sanitizers"),
]


def _build(name: str, sources: Path) -> Path:
    """Builds the library of `sources` as setup.py does, with the sanitizers added."""
    folder = ROOT / "build" / name
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DTORCH_DIR={Path(torch.__file__).parent}", f"-DKERNELS_DIR={sources}"]
    configure += ["-DCMAKE_CXX_COMPILER=g++", "-DFASTADAAD_SANITIZE=address,undefined"]
    for command in (configure, ["cmake", "--build", folder]):
        result = subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "_C.so"


def _run(*arguments: str, library: Path) -> subprocess.CompletedProcess:
    """Runs Python with the sanitizers, which end it at the first fault."""
    environment = os.environ | {
        "FASTADAAD_KERNELS": "reference",
        "SANITIZED_KERNELS": str(library),
        "LD_PRELOAD": " ".join(filter(None, map(_found, PRELOADED))),
        # Leak detection is off, as Python keeps memory until it ends; the shadow gap is unprotected, as CUDA uses it.
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_kernels_pass_their_tests():
    """The tests have odd sizes, no rows, strides and channels-last, in the baseline and in the best version."""
    files = sorted({f"tests/ops/test_{row.op}.py" for row in ops.report()})
    assert len(files) == 6
    library = _build("sanitized", ROOT / "kernels" / "cpu")
    # Only Python's own output is captured, so that the sanitizers' reports reach stderr.
    options = ["-q", "--capture=sys", "-p", "sanitized_kernels", "-p", "no:cacheprovider"]
    result = _run("-m", "pytest", *options, *files, library=library)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert re.fullmatch(r"\d{3,} passed(, \d+ warnings?)? in .*", result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def call() -> Callable[[str], subprocess.CompletedProcess]:
    """Returns a function that calls a planted kernel with a tensor of 13 numbers."""
    library = _build("planted", HERE / "planted")
    program = "import os, sys, torch; torch.ops.load_library(os.environ['SANITIZED_KERNELS']); "
    program += "getattr(torch.ops.planted, sys.argv[1])(torch.ones(13)); print('done')"
    return lambda kernel: _run("-c", program, kernel, library=library)


def test_a_kernel_without_a_fault_passes(call):
    result = call("clean")
    assert (result.returncode, result.stdout) == (0, "done\n")


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        ("read_past", "AddressSanitizer: heap-buffer-overflow"),
        ("read_before", "AddressSanitizer: heap-buffer-overflow"),
        ("write_past", "AddressSanitizer: heap-buffer-overflow"),
        ("copy_past", "AddressSanitizer: heap-buffer-overflow"),
        ("overflow", "runtime error: signed integer overflow"),
        ("shift", "runtime error: shift exponent 64 is too large"),
        ("misaligned", "runtime error: load of misaligned address"),
    ],
)
def test_a_planted_fault_is_detected(call, kernel, report):
    result = call(kernel)
    assert result.returncode != 0
    assert result.stdout == ""
    assert report in result.stderr
    assert "planted.cpp" in result.stderr
