"""Runs a worker process on damaged files, and restarts it after a crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutations import damaged
from target import Target
from worker import Outcome

HERE = Path(__file__).parent
KEPT = HERE.parents[1] / "build" / "fuzz"  # files that caused a fault
# Signals of worker.py's timers; any other end is a crash of the reader.
SIGNALS = {signal.SIGPROF: "it hangs (no end of computing)", signal.SIGALRM: "it hangs (no end of waiting)"}


class Worker:
    """Worker process with the table TARGETS of a module; `limits` per read are CPU_SECONDS and SECONDS."""

    def __init__(self, module: str, *limits: float) -> None:
        self._command = [sys.executable, str(HERE / "worker.py"), module, *map(str, limits)]
        self._process: subprocess.Popen | None = None

    def read(self, name: str, folder: Path) -> Outcome:
        """Reads `folder` as the target `name`; returns the outcome."""
        process = self._process or self._start()
        process.stdin.write(f"{name}\t{folder}\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if answer:
            return Outcome(*json.loads(answer))
        self._process = None
        code = process.wait()
        return Outcome(SIGNALS.get(-code, f"it crashes ({_name_of(code)})"), "")

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def _start(self) -> subprocess.Popen:
        # The package beside these tests, which may be another one than the installed package.
        path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout.readline() == "ready\n"
        return self._process


def _name_of(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def faults(
    worker: Worker, name: str, target: Target, folder: Path, *, seed: int, num_random: int
) -> tuple[list[str], Counter[str]]:
    """Reads damaged versions of valid files; returns the faults in words, and the numbers of read and refused files."""
    target.write(folder)
    found, counts = [], Counter[str]()
    for number, part in enumerate(target.parts):
        path = folder / part.file
        whole = path.read_bytes()
        for case, inner in enumerate(damaged(part.unpack(whole), part.fields, seed, num_random)):
            path.write_bytes(part.pack(whole, inner))
            fault, message = worker.read(name, folder)
            counts["refused" if message else "read"] += 1
            if fault:
                kept = KEPT / f"{name}-part{number}-seed{seed}-case{case}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(folder, kept)
                found.append(f"{name}, {part.file}, seed {seed}, case {case}, kept in {kept}: {fault}")
        path.write_bytes(whole)
    return found, counts
