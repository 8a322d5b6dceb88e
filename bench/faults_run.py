"""Runs with a fault in each process until they end, compared with an undisturbed run.

A run is observed from outside: by its files and by the output of its processes.
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

# A training of seconds that saves at each step, with momentum, weight average and adaptive teacher policy as state.
WORDS = (
    "demo", "optim.epochs=4", "inner.num_steps=2", "teacher.policy=refreshed", "checkpoint_every=1", "teacher_check=0",
    "deterministic=true", "device=cpu", "evaluation.every_epochs=1", "evaluation.validation_attack=pgd30",
    'evaluation.attacks=["natural","pgd20"]',
)  # fmt: skip
TIMED = ("images_per_s", "seconds", "data_wait")
"""Columns of metrics.csv and results.csv that differ from run to run."""
DAMAGED_AT = 0.0
"""Modification time that marks a damaged checkpoint: no other file is that old."""
RUNS = "runs"
LIMIT_S = 300.0  # a process should take seconds; after this it hangs
MAX_IDLE = 10
POLL_S = 3e-4  # a temporary file exists for about a millisecond


class Child(Protocol):
    """Part of the interface of subprocess.Popen that is needed."""

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...


Start = Callable[[Path, Path], Child]
"""Starts a process that trains in the folder given first, or resumes there, and prints to the given file."""


def start(folder: Path, output: Path) -> Child:
    """Starts the command line in a new interpreter, with --resume."""
    command = [sys.executable, "-m", "fastadaad", "train", *WORDS, "--run-folder", str(folder), "--resume"]
    with output.open("w") as file:
        root = Path(__file__).parents[1]
        return subprocess.Popen(command, cwd=root, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT)


class Process:
    """A process of the run in `folder`, whose output goes to the file `output`."""

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
        """Returns True from right before the first step on, when the trainer writes config.json."""
        return self._config_state() != self._config_before

    def printed(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Waits for `condition`; returns False if the process ends before.

        Raises TimeoutError if the process hangs; it is killed then.
        """
        while not condition():
            if self.child.poll() is not None:
                return False
            if time.monotonic() > self._deadline:
                self.child.send_signal(signal.SIGKILL)
                raise TimeoutError(f"a process of {self.folder} did not end in {LIMIT_S:.0f} s, see {self.output}")
            time.sleep(POLL_S)
        return True

    def wait(self, seconds: float) -> bool:
        """Waits for `seconds`; returns True if the process still runs."""
        until = time.monotonic() + seconds
        return self.wait_for(lambda: time.monotonic() >= until)

    def exit_code(self) -> int:
        """Waits for the end of the process and returns its exit code; -9 after SIGKILL."""
        self.wait_for(lambda: self.child.poll() is not None)
        code = self.child.poll()
        assert code is not None
        return code


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault of one process."""

    strike: Callable[[Process], str | None]
    """Inflicts the fault, which ends the process, and returns its name; None if the process had ended before."""
    exit_codes: tuple[int, ...] = (-signal.SIGKILL,)
    """Exit codes with which the process should end."""


@dataclass(kw_only=True)
class Struck:
    """A process with a fault, and the outcome of its run."""

    name: str
    step: int
    """Step of the checkpoint that the next process should resume from; 0 without a checkpoint."""
    ended_well: bool
    """True if the process ended with an expected exit code."""
    went_on: bool = False
    """True if the next process resumed from that step."""
    equal: bool = False
    """True if the finished run equals the undisturbed one."""
    run: int = 0
    """Number of the run."""

    @property
    def survived(self) -> bool:
        return self.ended_well and self.went_on and self.equal


def step_of(path: Path) -> int:
    """Optimizer step in the name of a checkpoint."""
    return int(path.stem.removeprefix("step-"))


def usable_checkpoints(folder: Path) -> list[Path]:
    """Undamaged checkpoints of a run, the latest first."""
    return [path for path in checkpoint_paths(folder) if path.stat().st_mtime != DAMAGED_AT]


def under_faults(
    start: Start, place: Path, whole: Path, faults: deque[Fault], log: Callable[[str], object]
) -> list[Struck]:
    """Trains in `place`/runs until all `faults` have struck, and compares each run with the one in `whole`.

    Args:
        start: Starts a process.
        place: Folder that keeps the output of the processes, and the runs that do not end as expected.
        whole: Folder of the undisturbed run.
        faults: The faults; each is removed once it has struck.
        log: Receives progress lines.

    Raises:
        RuntimeError: A run fails without a fault, or is too short for one.
    """
    struck: list[Struck] = []
    num_runs = num_idle = 0
    while faults:
        if num_idle == MAX_IDLE:
            raise RuntimeError(f"{MAX_IDLE} runs ended before the next fault could strike: make them longer")
        num_runs += 1
        folder = place / RUNS / f"run-{num_runs}"
        found, problem = _run(start, folder, place, faults, lambda line, number=num_runs: log(f"run {number}: {line}"))
        if problem and not found:
            raise RuntimeError(f"a run without a fault ended with {problem}")
        problems = [problem] if problem else differences(whole, folder)
        for each in found:
            each.run, each.equal = num_runs, not problems
        log(f"run {num_runs} ended after {len(found)} faults: {'; '.join(problems) or 'equal'}")
        struck += found
        num_idle = 0 if found else num_idle + 1
        if all(each.survived for each in found) and not problems:
            shutil.rmtree(folder)
        elif folder.exists():
            shutil.move(folder, place)
    return struck


def _run(
    start: Start, folder: Path, outputs: Path, faults: deque[Fault], log: Callable[[str], object]
) -> tuple[list[Struck], str | None]:
    """Returns the faults of one run, and why it ended early; None if it finished."""
    struck: list[Struck] = []
    pending: list[Struck] = []
    while True:
        process = Process(start, folder, outputs / f"{folder.name}-{len(struck)}.txt")
        try:
            name = faults[0].strike(process) if faults else None
            code = process.exit_code()
        finally:
            process.child.send_signal(signal.SIGKILL)  # in case this program is interrupted
        first_step = resumed_step(process.printed())
        if first_step is not None:
            # Several are pending after a process that was killed before it read a checkpoint.
            for each in pending:
                each.went_on = each.step == first_step
            pending.clear()
        if name is None:
            return struck, None if code == 0 else f"exit code {code}, see {process.output}"
        ended_well = code in faults.popleft().exit_codes
        step = max(map(step_of, usable_checkpoints(folder)), default=0)
        struck.append(Struck(name=name, step=step, ended_well=ended_well))
        pending.append(struck[-1])
        log(f"{name}, exit code {code}; step {struck[-1].step} is saved")


def resumed_step(printed: str) -> int | None:
    """Step that the process resumes from; 0 for a run from the beginning, None if it printed neither."""
    if match := re.search(r"^resuming from .*step-(\d+)\.safetensors: ", printed, re.MULTILINE):
        return int(match[1])
    return 0 if "has no checkpoint: the run starts from its beginning" in printed else None


def differences(whole: Path, folder: Path) -> list[str]:
    """Lists files of the run in `folder` that differ bitwise from `whole`, times excepted, and temporary files left."""
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
    """Rows of a run's CSV file as strings, without the columns in TIMED."""
    with path.open(newline="") as file:
        return [{name: text for name, text in row.items() if name not in TIMED} for row in csv.DictReader(file)]
