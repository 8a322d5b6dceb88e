"""Builds kernels/cpu with CMake into kernels/_C.so, which torch.ops.load_library loads; the rest is in pyproject.toml.

Only torch's headers and one of its libraries are needed, found without importing it. torch is no build requirement:
it would be gigabytes, and any torch with the stable C++ interface serves. In pip's isolated build, which hides
installed packages, the torch of the interpreter that runs pip is used; where there is none, the wheel has no kernels.
The name of such a wheel says so, as pip shows that name and hides what a build prints.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# pip runs from an environment that is not activated: its cmake and ninja are beside the interpreter.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])


def find_torch() -> Path | None:
    """The folder of the torch package, or None."""
    spec = importlib.util.find_spec("torch")
    installed = [Path(spec.origin).parent] if spec and spec.origin else []
    isolated = [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    folders = [folder for folder in installed + isolated if (folder / "include").is_dir()]
    return folders[0] if folders else None


def find_tool(*names: str) -> str | None:
    """Path of the first of these programs that exists, or None."""
    return next((path for path in (shutil.which(name, path=SEARCH_PATH) for name in names) if path), None)


def missing_tools() -> list[str]:
    """What the build of the kernels needs and this machine does not have, in words."""
    compilers = shlex.split(os.environ.get("CXX", ""))[:1] or ["c++", "g++", "clang++"]
    found = {
        "torch (pip install torch)": find_torch(),
        "a C++ compiler (install g++ or clang++, or set CXX)": find_tool(*compilers),
        "cmake (pip install cmake)": find_tool("cmake"),
        "ninja (pip install ninja)": find_tool("ninja"),
    }
    return [name for name, where in found.items() if not where]


class BuildKernels(build_ext):
    """Runs CMake in build/cmake, which stays, so that the next install compiles only what has changed."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"  # not a Python module: no interpreter tag

    def build_extension(self, ext: Extension) -> None:
        folder = ROOT / "build" / "cmake"
        environment = {**os.environ, "PATH": SEARCH_PATH}
        configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DTORCH_DIR={find_torch()}", f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}"]
        subprocess.run(configure, env=environment, check=True)
        subprocess.run(["cmake", "--build", folder], env=environment, check=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        # Renamed, not overwritten: a process that has the old library mapped would crash.
        temporary = target.with_suffix(".tmp")
        shutil.copyfile(folder / "_C.so", temporary)
        temporary.replace(target)


class PlatformWheel(bdist_wheel):
    """Tags a wheel with kernels py3-none-<platform>: they use neither Python's interface nor one torch version's.

    A wheel without them gets the build tag 0nokernels, and py3-none-any.
    """

    def finalize_options(self) -> None:
        if not self.distribution.has_ext_modules() and self.build_number is None:
            self.build_number = "0nokernels"  # a build tag begins with a digit
        super().finalize_options()

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def extensions(missing: list[str]) -> list[Extension]:
    """The library of C++ kernels, or nothing if something is missing to build it."""
    if missing:
        return []
    sources, headers = (
        sorted(str(path.relative_to(ROOT)) for path in (ROOT / "kernels" / "cpu").glob(pattern))
        for pattern in ("*.cpp", "*.h")
    )
    return [Extension("fastadaad.kernels._C", sources, depends=["CMakeLists.txt", *headers])]


if __name__ == "__main__":
    missing = missing_tools()
    setup(
        packages=[
            *find_packages(include=["fastadaad*"]),
            "fastadaad.kernels",
            *(f"fastadaad.kernels.{name}" for name in find_packages("kernels")),
        ],
        package_dir={"fastadaad.kernels": "kernels"},
        ext_modules=extensions(missing),
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
    if missing:  # at the end, below all that a build prints
        remedy = "to get them, provide it and install again"
        print(f"fastadaad: built without the C++ kernels; missing: {', '.join(missing)}; {remedy}", file=sys.stderr)
