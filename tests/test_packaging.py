"""The build detects what it can compile, the wheel holds the right files, and a demo needs no extra."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def setup(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    """Runs setup.py in `folder` with changes to the environment."""
    command = [sys.executable, "-W", "ignore", "setup.py", *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=True)


@pytest.fixture
def tree(tmp_path):
    """Copies the files from which a wheel is built to a temporary folder."""
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    for name in ("fastadaad", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__", "weights"))
    return tmp_path


def test_without_a_compiler_the_wheel_is_pure_and_one_line_names_the_reason(tree):
    result = setup("-q", "bdist_wheel", folder=tree, CXX="/nowhere/c++")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("fastadaad:")]
    assert "built without the C++ kernels; missing: a C++ compiler (install g++ or clang++, or set CXX);" in line
    assert result.stderr.splitlines()[-1] == line
    (wheel,) = (tree / "dist").iterdir()
    assert re.fullmatch(r"fastadaad-[0-9.]+-0nokernels-py3-none-any\.whl", wheel.name)
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", wheel], capture_output=True, text=True).stdout
    assert "fastadaad/ops/kl_grad.py" in names
    assert "fastadaad/kernels/triton/kl_grad.py" in names
    assert "fastadaad/__init__.pyi" in names
    assert "fastadaad/py.typed" in names
    assert "fastadaad/models/shipped/demo-teacher.safetensors" in names
    assert ".so" not in names
    assert ".cpp" not in names


def installed_by(target: str, folder: Path) -> list[str]:
    """Returns what `make TARGET` would install in place, in a clone without an environment."""
    command = ["make", "--dry-run", target, f"VENV={folder / 'venv'}"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return re.findall(r"--editable '(.*)'", printed)


@pytest.mark.parametrize("target", ["setup", "demo"])
def test_a_demo_installs_no_extra(target, tmp_path):
    assert installed_by(target, tmp_path) == ["."]


@pytest.mark.parametrize("target", ["setup-dev", "test", "test-fast", "lint", "docs", "coverage", "bench", "bench-gpu"])
def test_tests_and_checks_install_their_extra_at_once(target, tmp_path):
    assert installed_by(target, tmp_path) == [".[dev]"]


def imported_at_once(path: Path) -> set[str]:
    """Returns the packages that a module imports when it is imported, but for Python's and our own."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"fastadaad"}


def test_the_package_imports_only_its_dependencies():
    pyproject = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^dependencies = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)[1]
    allowed = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', listed)} | {"PIL", "yaml"}
    assert {"pillow", "pyyaml"} <= allowed  # which are imported by those names
    modules = [path for path in (ROOT / "fastadaad").rglob("*.py") if path.name != "dali_graph.py"]
    assert {name for path in modules for name in imported_at_once(path)} <= allowed


def test_the_citation_has_the_version_of_the_package():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_without_the_library_the_reference_runs_and_the_report_names_the_reason(tree):
    (tree / "fastadaad" / "kernels").mkdir()
    shutil.copy(tree / "kernels" / "__init__.py", tree / "fastadaad" / "kernels")
    program = "import fastadaad.ops as ops, sys; print(ops.__file__); print(*ops.report()[0])"
    result = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, check=True)
    place, row = result.stdout.splitlines()
    assert place.startswith(str(tree))
    assert row.startswith("crop_flip cpu reference not built: install again with torch and a C++ compiler present")


@pytest.mark.parametrize("library", list(ROOT.glob("kernels/_C.so")))
def test_the_library_uses_only_torchs_stable_interface(library):
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    from_torch = [name for name in names if "@" not in name and not name.startswith(("_ITM", "__gmon", "__cxa"))]
    assert any(name.startswith("torch_") for name in from_torch)
    assert all(name.startswith(("aoti_torch_", "torch_")) for name in from_torch)
