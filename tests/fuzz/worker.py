"""Reads damaged files in a separate process with bounded memory and time.

`python worker.py MODULE [CPU_SECONDS SECONDS]`; MODULE has a table TARGETS. Each line of the input is the name of a
target and a folder, separated by a tab; each line of the output is an Outcome as JSON.
"""

import importlib
import json
import os
import re
import resource
import signal
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

MEMORY_BYTES = 2**30
"""Memory that a read may add to the process. An image of untrusted_files.IMAGE_PIXELS in RGB takes a third of it."""
CPU_SECONDS = 10.0
"""CPU time per read."""
SECONDS = 120.0
"""Wall-clock time per read; a read that takes longer with less CPU time waits for something."""

# Messages of a failed allocation in Python, torch, C++ and Rust.
REFUSED_ALLOCATION = re.compile(
    r"MemoryError|can't allocate memory|bad_alloc|not enough memory|[Cc]annot allocate memory"
)


class Outcome(NamedTuple):
    """Result of one read: `fault` is empty if the files were read, or refused with the documented error."""

    fault: str
    message: str


def read(target, folder: Path) -> Outcome:
    """Reads the files of `target` in `folder`."""
    try:
        target.read(folder)
    except target.error as error:
        message = str(error)
        chain = _chain(error)
        if REFUSED_ALLOCATION.search(chain):
            return Outcome(f"it asked for too much memory: {chain}", message)
        if "\n" in message or "\r" in message:
            return Outcome(f"its message has several lines: {message!r}", message)
        if str(folder) not in message:
            return Outcome(f"its message names no file: {message!r}", message)
        return Outcome("", message)
    except BaseException as error:
        return Outcome(f"an exception that is not documented: {_chain(error)}", str(error))
    return Outcome("", "")


def _chain(error: BaseException | None) -> str:
    """Returns the messages of an exception and its causes."""
    texts = []
    while error is not None:
        texts.append(f"{type(error).__name__}: {str(error)[:300]}")
        error = error.__cause__ or error.__context__
    return " <- ".join(texts)


def _limit_memory() -> None:
    used = 1024 * int(re.findall(r"^VmData:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    module, *limits = sys.argv[1:]
    cpu_seconds, seconds = map(float, limits) if limits else (CPU_SECONDS, SECONDS)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the output of a library is not an answer
    targets = importlib.import_module(module).TARGETS
    warnings.simplefilter("ignore")
    _limit_memory()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        name, folder = line.rstrip("\n").split("\t")
        # Python handles neither signal, so that they end the process in C code too.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        outcome = read(targets[name], Path(folder))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(outcome), file=answers, flush=True)


if __name__ == "__main__":
    main()
