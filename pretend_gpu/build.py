"""Builds the stub runtime with the C++ compiler and the CUDA headers of torch's wheels."""

import hashlib
import shutil
import subprocess
import sysconfig
import tempfile
from importlib import metadata, util
from pathlib import Path

FILES = sorted(Path(__file__).parent.glob("runtime/*"))
NAME = "libcuda.so.1"  # by this name torch, Triton and Inductor look for the driver


def why_not() -> str | None:
    """Returns the reason if this machine cannot pretend a GPU, in one line."""
    if "+cpu" in metadata.version("torch") or not (_packages() / "nvidia").is_dir():
        return "torch is a CPU build: install its CUDA build"
    if util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if shutil.which("g++") is None:
        return "there is no C++ compiler: install g++"
    return None


def build() -> Path:
    """Compiles the runtime unless it is there already; returns the library.

    Raises:
        RuntimeError: The compiler fails.
    """
    includes = [*_packages().glob("nvidia/cu*/include"), _packages() / "triton/backends/nvidia/include"]
    options = ["-std=c++17", "-O1", "-Wall", "-shared", "-fPIC", "-D__CUDA_INTERNAL_SKIP_CPP_HEADERS__"]
    options += [f"-Wl,-soname,{NAME}", *(f"-I{folder}" for folder in includes)]
    facts = "\n".join([metadata.version("torch"), *options])
    digest = hashlib.sha256(b"".join(map(Path.read_bytes, FILES)) + facts.encode()).hexdigest()[:16]
    library = Path(__file__).parent.parent / "build" / "pretend_gpu" / digest / NAME
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / NAME
            sources = [file for file in FILES if file.suffix == ".cpp"]
            command = ["g++", *options, *sources, "-o", made, "-ldl", "-lpthread"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise RuntimeError(f"the pretend GPU does not compile: {result.stderr[:2000]}")
            made.rename(library)  # another process may have been faster, with the same library
    return library


def _packages() -> Path:
    return Path(sysconfig.get_path("purelib"))
