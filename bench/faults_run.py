"""One run that meets a fault in each of its processes until it has ended, and whether it ends as if there were none.

A run is watched from outside: by its files, and by what its processes print.
"""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastadaad.training.checkpoint import checkpoint_paths

# A training of seconds, with momentum, an average and an adaptive teacher policy to be kept, that saves at each step.
WORDS = (
    "demo", "optim.epochs=4", "inner.num_steps=2", "teacher.policy=refreshed", "checkpoint_every=1", "teacher_check=0",
    "deterministic=true", "device=cpu", "evaluation.every_epochs=1", "evaluation.validation_attack=pgd30",
    'evaluation.attacks=["natural","pgd20"]',
)  # fmt: skip
TIMED = ("images_per_s", "seconds", "data_wait")
"""Columns of metrics.csv and results.csv that are another at each run."""
DAMAGED_AT = 0.0
"""Time of change that marks a checkpoint damaged: no file is so old."""
RUNS = "runs"
LIMIT_S = 300.0  # of a process of seconds: it hangs
MAX_IDLE = 10
POLL_S = 3e-4  # a file that is being written is there for a millisecond


class Child(Protocol):
    """A process, as subprocess.Popen has it."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


Start = Callable[[Path, Path], Child]
"""Begins a process that trains in the first folder, or goes on there, and prints to the file."""


def start(folder: Path, output: Path) -> Child:
    """The command line in a new interpreter, with --resume."""
    command = [sys.executable, "-m", "fastadaad", "train", *WORDS, "--run-folder", str(folder), "--resume"]
    with output.open("w") as file:
        root = Path(__file__).parents[1]
        return subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)


class Process:
    """A process of the run in `folder`."""

    def __init__(self, start: Start, folder: Path, output: Path) -> None:
        self.folder, self.output = folder, output
        self._config_before = self._config_state()
        self._deadline = time.monotonic() + LIMIT_S
        self.child = start(folder, output)

    def _config_state(self) -> tuple[int, int] | None:
        path = self.folder / "config.json"
        if not path.exists():
            return None
        state = path.stat()
        return state.st_ino, state.st_mtime_ns

    def has_begun(self) -> bool:
        """Whether its first step is next, or was taken: the trainer writes config.json right before it."""
        return self._config_state() != self._config_before

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether `condition` became true before the process ended. Raises TimeoutError where it hangs."""
        while not condition():
            if self.child.poll() is not None:
                return False
            if time.monotonic() > self._deadline:
                self.child.send_signal(signal.SIGKILL)
                raise TimeoutError(f"a process of {self.folder} did not end in {LIMIT_S:.0f} s, see {self.output}")
            time.sleep(POLL_S)
        return True

    def wait(self, seconds: float) -> bool:
        """Whether it still runs after so long."""
        until = time.monotonic() + seconds
        return self.wait_for(lambda: time.monotonic() >= until)

    def exit_code(self) -> int:
        """Of a process that ends by itself, or by what was done to it; -9 after SIGKILL."""
        self.wait_for(lambda: self.child.poll() is not None)
        code = self.child.poll()
        assert code is not None
        return code


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to a process."""

    strike: Callable[[Process], str | None]
    """Lets it happen, which ends the process, and gives its name; None where the process had ended before."""
    exit_codes: tuple[int, ...] = (-signal.SIGKILL,)
    """Those that it should end with."""


@dataclass(kw_only=True)
class Struck:
    """A process that met a fault, and what became of its run."""

    name: str
    step: int
    """Of the checkpoint that the next process should go on from; 0: there is none."""
    ended_well: bool
    """With the exit code that is due."""
    went_on: bool = False
    equal: bool = False
    run: int = 0
    """Its number."""

    @property
    def survived(self) -> bool:
        return self.ended_well and self.went_on and self.equal


def step_of(path: Path) -> int:
    """The optimiser step in the name of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def usable_checkpoints(folder: Path) -> list[Path]:
    """Those of a run that no fault has damaged, the latest first."""
    return [path for path in checkpoint_paths(folder) if path.stat().st_mtime != DAMAGED_AT]


def under_faults(
    start: Start, place: Path, whole: Path, faults: deque[Fault], say: Callable[[str], object]
) -> list[Struck]:
    """Runs in `place`/runs, as many as it takes for all `faults` to strike; each is compared with the one in `whole`.

    Those that struck are taken off `faults`. What processes print, and a run that does not end as it should, stays in
    `place`; `say` hears what happens. Raises RuntimeError where a run fails without a fault, or is too short for one.
    """
    struck: list[Struck] = []
    num_runs = num_idle = 0
    while faults:
        if num_idle == MAX_IDLE:
            raise RuntimeError(f"{MAX_IDLE} runs have ended before the next fault could strike: make them longer")
        num_runs += 1
        folder = place / RUNS / f"run-{num_runs}"
        found, problem = _run(start, folder, place, faults, lambda line, number=num_runs: say(f"run {number}: {line}"))
        if problem and not found:
            raise RuntimeError(f"a run without a fault ends with {problem}")
        problems = [problem] if problem else differences(whole, folder)
        for each in found:
            each.run, each.equal = num_runs, not problems
        say(f"run {num_runs} has ended after {len(found)} faults: {'; '.join(problems) or 'equal'}")
        struck += found
        num_idle = 0 if found else num_idle + 1
        if all(each.survived for each in found) and not problems:
            shutil.rmtree(folder)
        elif folder.exists():
            shutil.move(folder, place)
    return struck


def _run(
    start: Start, folder: Path, outputs: Path, faults: deque[Fault], say: Callable[[str], object]
) -> tuple[list[Struck], str | None]:
    """The faults of one run, and why it ended before its end."""
    struck: list[Struck] = []
    pending: list[Struck] = []
    while True:
        process = Process(start, folder, outputs / f"{folder.name}-{len(struck)}.txt")
        try:
            name = faults[0].strike(process) if faults else None
            code = process.exit_code()
        finally:
            process.child.send_signal(signal.SIGKILL)  # where this program is to end before it
        begun_at = resumed_step(process.printed())
        if begun_at is not None:
            # More than one after a process that was killed before it read a checkpoint.
            for each in pending:
                each.went_on = each.step == begun_at
            pending.clear()
        if name is None:
            return struck, None if code == 0 else f"exit code {code}, see {process.output}"
        ended_well = code in faults.popleft().exit_codes
        step = max(map(step_of, usable_checkpoints(folder)), default=0)
        struck.append(Struck(name=name, step=step, ended_well=ended_well))
        pending.append(struck[-1])
        say(f"{name}, exit code {code}; step {struck[-1].step} is saved")


def resumed_step(printed: str) -> int | None:
    """Where a process says that it begins; None where it has not come so far."""
    if match := re.search(r"^going on from .*step-(\d+)\.safetensors: ", printed, re.MULTILINE):
        return int(match[1])
    return 0 if "has no checkpoint: the run starts from its beginning" in printed else None


def differences(whole: Path, folder: Path) -> list[str]:
    """What of the run in `folder` is not bitwise as in `whole`, but for times; and files that should not be left."""
    different = [
        name
        for name in ("last.safetensors", "best.safetensors")
        if (folder / name).read_bytes() != (whole / name).read_bytes()
    ]
    different += [
        name for name in ("metrics.csv", "results.csv") if untimed_rows(folder / name) != untimed_rows(whole / name)
    ]
    left = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.tmp"))]
    return [f"{name} differs" for name in different] + [f"{name} is left" for name in left]


def untimed_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file of a run as they are written, without the columns that are another at each run."""
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMED} for row in csv.DictReader(file)]
