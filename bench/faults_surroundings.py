"""Faults around a training: of its output, of the processes that read its data, and of the machine that it runs on.

Each fault has a training in a new interpreter; it goes on or ends as documented, and its weights, if need be after a
resume, are those of an undisturbed training.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .faults_kinds import SMALL, files_of_run
from .faults_run import LIMIT_S, Struck

ROOT = Path(__file__).parents[1]
TRAIN = (sys.executable, "-m", "fastadaad", "train", *SMALL)
LOST_WORKER = 75
WORKER_SETTINGS = ("data.engine=torch", "data.num_workers=2")
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastadaad", "train",
    *SMALL,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Place:
    """Folder of one fault: the run in it, and the undisturbed run."""

    folder: Path
    whole: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def words(self, *more: str, command: tuple[str, ...] = TRAIN) -> list[str]:
        return [*command, *more, "--run-folder", str(self.run)]

    def equals(self) -> bool:
        """Returns True if the run has ended with the weights and tables of the undisturbed one."""
        problems = files_of_run(self.whole, self.run)
        (self.folder / "problems.txt").write_text("\n".join(problems))
        return not problems

    def start(self, *more: str, command: tuple[str, ...] = TRAIN, **options: object) -> subprocess.Popen[bytes]:
        """Starts the training; its output goes to files unless `options` say otherwise."""
        streams = {name: (self.folder / f"{name}.txt").open("ab") for name in ("stdout", "stderr")}
        settings: dict[str, object] = {"cwd": ROOT, "stdin": subprocess.DEVNULL, **streams, **options}
        return subprocess.Popen(self.words(*more, command=command), **settings)  # type: ignore[call-overload]

    def resume(self, **options: object) -> int:
        return self.start("--resume", **options).wait(LIMIT_S)

    def errors(self) -> str:
        return (self.folder / "stderr.txt").read_text()

    def has_begun(self) -> bool:
        return any((self.run / "checkpoints").glob("step-*.safetensors"))

    def wait_for_step(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the first checkpoint."""
        deadline = time.monotonic() + LIMIT_S
        while not self.has_begun():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no step was trained, see {self.folder}")
            time.sleep(0.005)


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | changes


Outcome = tuple[bool, bool]
"""The process ended or went on as documented; the run equals the undisturbed one."""
Strike = Callable[[Place], Outcome]


def _messages_are_kept(place: Place) -> bool:
    return "demo adaad seed 0" in (place.run / "log.txt").read_text()


def shell(redirection: str, **changes: str) -> Strike:
    """Returns a training whose streams the shell redirects."""

    def strike(place: Place) -> Outcome:
        words = "'" + "' '".join(place.words()) + "'"
        command = ["bash", "-o", "pipefail", "-c", f"{words} {redirection}"]
        code = subprocess.run(command, cwd=ROOT, env=environment(**changes), timeout=LIMIT_S).returncode
        return code == 0 and _messages_are_kept(place), place.equals()

    return strike


def hang_up(*, with_terminal: bool) -> Strike:
    """Returns a training whose terminal goes away."""

    def strike(place: Place) -> Outcome:
        other, own = os.openpty()
        options = {"stdin": own, "stdout": own, "stderr": own} if with_terminal else {}
        process = place.start(env=environment(), start_new_session=True, **options)
        os.close(own)
        if with_terminal:
            drain = subprocess.Popen(["cat"], stdin=other, stdout=subprocess.DEVNULL)
        place.wait_for_step(process)
        if with_terminal:
            drain.kill()
            drain.wait()
        os.close(other)
        process.send_signal(signal.SIGHUP)
        return process.wait(LIMIT_S) == 0 and _messages_are_kept(place), place.equals()

    return strike


OUTPUT: dict[str, Strike] = {
    "standard output on a full disk": shell(">/dev/full 2>/dev/null"),
    "standard error on a full disk": shell("2>/dev/full >/dev/null"),
    "both on a full disk": shell(">/dev/full 2>&1"),
    "standard output closed": shell(">&- 2>/dev/null"),
    "standard error closed": shell("2>&- >/dev/null"),
    "all standard streams closed": shell("<&- >&- 2>&-"),
    "a reader that ends at once": shell("2>&1 | true"),
    "a reader of one line": shell("2>&1 | head -1 >/dev/null"),
    "a reader of standard error that ends": shell("2> >(true) >/dev/null"),
    "an encoding without the letters": shell(">/dev/null 2>&1", PYTHONIOENCODING="ascii:strict"),
    "SIGHUP": hang_up(with_terminal=False),
    "a terminal that goes away": hang_up(with_terminal=True),
}


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lose_worker(number: signal.Signals, *, all_of_them: bool = False, stop_the_rest: bool = False) -> Strike:
    """Returns a training with two workers, of which one or both get a signal after the first checkpoint."""

    def strike(place: Place) -> Outcome:
        process = place.start(*WORKER_SETTINGS, env=environment())
        place.wait_for_step(process)
        workers: list[int] = []
        while len(workers) < 2 and process.poll() is None:
            workers = children(process)
        first, *rest = workers
        if stop_the_rest:
            for worker in rest:
                os.kill(worker, signal.SIGSTOP)
        for worker in workers if all_of_them else [first]:
            os.kill(worker, number)
        code = process.wait(60)
        left = [worker for worker in workers if Path(f"/proc/{worker}").exists()]
        # torch ends its own line about a signal with a zero byte.
        lines = [line for line in place.errors().splitlines() if line.strip("\0 ").startswith("fastadaad: ")]
        ended_well = code == LOST_WORKER and not left and len(lines) == 1 and "Traceback" not in place.errors()
        return ended_well and place.start("--resume", *WORKER_SETTINGS, env=environment()).wait(
            LIMIT_S
        ) == 0, place.equals()

    return strike


WORKERS: dict[str, Strike] = {
    "a worker killed": lose_worker(signal.SIGKILL),
    "a worker with a bus error": lose_worker(signal.SIGBUS),
    "a worker with a segmentation fault": lose_worker(signal.SIGSEGV),
    "a worker that aborts": lose_worker(signal.SIGABRT),
    "both workers killed": lose_worker(signal.SIGKILL, all_of_them=True),
    "a worker killed and the other stopped": lose_worker(signal.SIGKILL, stop_the_rest=True),
}


def killed_then(change: Callable[[Place], Place]) -> Strike:
    """Returns a training that is killed, whose surroundings change, and that resumes.

    Another number of threads is not among them: torch then rounds differently.
    """

    def strike(place: Place) -> Outcome:
        process = place.start(env=environment())
        place.wait_for_step(process)
        process.kill()
        process.wait()
        moved = change(place)
        return moved.resume(env=environment()) == 0, moved.equals()

    return strike


def _move(place: Place) -> Place:
    moved = Place(folder=place.folder / "moved", whole=place.whole)
    moved.folder.mkdir()
    shutil.move(place.run, moved.run)
    return moved


def _set_clock_back(place: Place) -> Place:
    """Makes the files of the run a year newer than the clock."""
    later = time.time() + 365 * 24 * 3600
    for path in place.run.rglob("*"):
        os.utime(path, (later, later))
    return place


def _write_foreign_files(place: Place) -> Place:
    for name in ("other.tmp", "checkpoints/other.tmp", "notes.txt"):
        (place.run / name).write_text("another program's")
    return place


def stopped(place: Place) -> Outcome:
    """Stops a training for five seconds."""
    process = place.start(env=environment())
    place.wait_for_step(process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(5)
    process.send_signal(signal.SIGCONT)
    return process.wait(LIMIT_S) == 0, place.equals()


def two_starts(place: Place) -> Outcome:
    """Starts the same run twice at once: one of them trains, the other one is refused."""
    processes = [place.start("--resume", env=environment()) for _ in range(2)]
    codes = sorted(process.wait(LIMIT_S) for process in processes)
    return codes == [0, 2] or codes == [0, 0], place.equals()


def interpreter(*options: str, **changes: str) -> Strike:
    """Returns a training under other settings of Python or the locale."""

    def strike(place: Place) -> Outcome:
        command = (TRAIN[0], *options, *TRAIN[1:])
        return place.start(command=command, env=environment(**changes)).wait(LIMIT_S) == 0, place.equals()

    return strike


def launcher_killed(place: Place) -> Outcome:
    """Kills torchrun, whose ranks end, and resumes the run in one process from a copy of its two ranks."""
    process = place.start(command=TORCHRUN, env=environment(), start_new_session=True)
    place.wait_for_step(process)
    ranks = children(process)
    process.kill()
    process.wait()
    until = time.monotonic() + 60
    while (left := [rank for rank in ranks if Path(f"/proc/{rank}").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    for rank in left:
        os.kill(rank, signal.SIGKILL)
    code = place.start("--resume", command=TORCHRUN, env=environment()).wait(LIMIT_S)
    whole = Place(folder=place.folder / "two", whole=place.whole)
    whole.folder.mkdir()
    whole.start(command=TORCHRUN, env=environment()).wait(LIMIT_S)
    return not left and code == 0, not files_of_run(whole.run, place.run)


PROCESSES: dict[str, Strike] = {
    "a resume in a moved folder": killed_then(_move),
    "a clock that is a year late": killed_then(_set_clock_back),
    "another program's files in the folder": killed_then(_write_foreign_files),
    "a process that is stopped and goes on": stopped,
    "two starts at once": two_starts,
    "python -O": interpreter("-O"),
    "python -W error": interpreter("-W", "error"),
    "the locale C without UTF-8": interpreter(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    "torchrun killed": launcher_killed,
}
SETTINGS = {"workers": WORKER_SETTINGS}
"""Settings of a group's trainings."""
GROUPS: dict[str, dict[str, Strike]] = {"output": OUTPUT, "workers": WORKERS, "processes": PROCESSES}


def struck(name: str, strike: Strike, folder: Path, whole: Path) -> Struck:
    """Inflicts a fault in the new folder `folder`, and returns its outcome."""
    folder.mkdir(parents=True)
    as_documented, equal = strike(Place(folder=folder, whole=whole))
    return Struck(name=name, step=0, ended_well=as_documented, went_on=as_documented, equal=equal, run=1)
