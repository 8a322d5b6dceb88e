"""Starts a Python program, and all that it starts, on a pretend GPU: python -m pretend_gpu [-m MODULE | SCRIPT] ..."""

import os
import sys
from pathlib import Path

from .build import build, why_not

HERE = Path(__file__).parent
INSTALLED = "PRETEND_GPU"  # set in the programs that run on it


def environment() -> dict[str, str]:
    """Returns the variables that put a Python process on the pretend GPU.

    Raises:
        RuntimeError: The runtime cannot be built.
    """
    library = build()
    paths = [str(HERE / "startup"), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        INSTALLED: "1",
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(paths),
        "TRITON_INTERPRET": "1",
    }


def main() -> None:
    """Replaces this process by the program."""
    reason = why_not()
    if reason:
        print(f"no pretend GPU: {reason}")
        return
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], environment())


main()
