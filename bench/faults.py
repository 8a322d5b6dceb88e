"""Short trainings that are killed, stopped or lose something, and are resumed: `python -m bench faults`.

Groups of faults: signals (kills at chosen moments of one kind of run), disk, kinds (kills in each kind of run), output,
workers and processes. Each row is written when it is measured, and a row that the file has of this commit and seed is
not measured again.

Each process is `fastadaad train ... --run-folder FOLDER --resume` and has one fault, until the run has ended. Some
processes are killed at a random moment, others while they save a checkpoint, write weights, validate or evaluate. At
the end the weights and the untimed columns of the tables must be bitwise equal to those of an undisturbed run. A kill
before the first step has nothing to lose. The effect of a power loss on the disk is not tested. The exit code is 1 if
a fault was not survived.
"""

import argparse
import csv
import re
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from rich.console import Console

from . import faults_kinds, faults_surroundings
from .faults_disk import NO_MOUNT, disk_faults, small_disk
from .faults_forks import ForkedChild
from .faults_moments import Plan, kills
from .faults_run import RUNS, Fault, Process, Start, Struck, start, under_faults
from .rows import RESULTS, conditions, write_rows
from .tables import print_rows

GROUPS = ("signals", "disk", "kinds", "output", "workers", "processes")
SHOWN = ("fault", "signal", "tried", "ended_well", "went_on", "equal", "survived")


def undisturbed(start: Start, folder: Path) -> Plan:
    """Runs the training without faults, which the other runs are compared with, and returns its schedule."""
    started_at = time.time()
    process = Process(start, folder, folder.with_suffix(".txt"))
    if code := process.exit_code():
        raise RuntimeError(f"a run without a fault ended with exit code {code}, see {process.output}")
    return Plan.of(folder, started_at)


def rows(struck: list[Struck], signal_name: str, seed: int) -> list[dict[str, object]]:
    """Returns one row of the CSV file per fault name."""
    names = sorted({each.name for each in struck})
    found = {name: [each for each in struck if each.name == name] for name in names}
    return [
        {
            "fault": name,
            "signal": signal_name,
            "tried": len(each),
            "ended_well": sum(one.ended_well for one in each),
            "went_on": sum(one.went_on for one in each),
            "equal": sum(one.equal for one in each),
            "survived": sum(one.survived for one in each),
            "runs": len({one.run for one in each}),
            "seed": seed,
        }
        for name, each in found.items()
    ]


def strike(place: Path, whole: Path, faults: list[Fault], title: str, console: Console) -> list[Struck]:
    """Runs under_faults in `place`, with live progress.

    Args:
        place: Folder of the runs and their output.
        whole: Folder of the undisturbed run.
        faults: The faults, one per process.
        title: Title of the progress lines.
        console: Console for the progress lines.
    """
    place.mkdir(exist_ok=True)
    left = deque(faults)
    with console.status(title):
        return under_faults(
            start,
            place,
            whole,
            left,
            lambda line: console.print(f"{title} {len(faults) - len(left)}/{len(faults)}, {line}", soft_wrap=True),
        )


def measure_signals(options: argparse.Namespace, place: Path, console: Console) -> Iterator[list[dict[str, object]]]:
    """Yields the rows of each signal, then of the disk faults, if these groups are chosen."""
    if not {"signals", "disk"} & set(options.groups):
        return
    whole = place / "whole"
    with console.status("the run without faults"):
        plan = undisturbed(start, whole)
    console.print(f"without faults: {plan}", soft_wrap=True)
    for number in options.signals if "signals" in options.groups else ():
        faults = kills(options.kills, number, plan, options.seed)
        struck = strike(place / number.name, whole, faults, number.name, console)
        yield rows(struck, number.name, options.seed)
    if "disk" not in options.groups:
        return
    disk = place / "disk"
    disk.mkdir()
    with small_disk(disk / RUNS) as can_mount:
        if not can_mount:
            console.print(NO_MOUNT)
        faults = disk_faults(options.disk, disk / RUNS, plan, options.seed, can_mount=can_mount)
        struck = strike(disk, whole, faults, "disk", console)
    yield rows(struck, signal.SIGKILL.name, options.seed)


def measure_others(
    options: argparse.Namespace, place: Path, done: set[str], console: Console
) -> Iterator[list[dict[str, object]]]:
    """Yields the row of each fault of the other groups that is not in `done`."""
    ForkedChild(int, place / "nothing.txt").wait()  # the imports of its server count in no run
    for name in faults_kinds.KINDS if "kinds" in options.groups else ():
        if name not in done and options.only.search(name):
            folder = place / "kinds" / name.replace(" ", "-")
            folder.mkdir(parents=True)
            with console.status(name):
                struck = list(faults_kinds.killed(name, folder, options.kills_per_kind, options.seed))
            yield rows(struck, signal.SIGKILL.name, options.seed)
    for group in faults_surroundings.GROUPS:
        if group not in options.groups:
            continue
        whole = place / f"whole-{group}"
        faults_kinds.undisturbed(faults_kinds.training(*faults_surroundings.SETTINGS.get(group, ())), whole)
        for name, inflict in faults_surroundings.GROUPS[group].items():
            if name not in done and options.only.search(name):
                with console.status(name):
                    struck = [faults_surroundings.struck(name, inflict, place / group / name.replace(" ", "-"), whole)]
                yield rows(struck, "", options.seed)


def measured_before(path: Path, seed: int) -> set[str]:
    """Returns the names of the faults that the file has of this commit and seed."""
    if not path.exists():
        return set()
    commit = conditions(torch.device("cpu"))["commit"]
    with path.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if (row["commit"], row["seed"]) == (commit, str(seed))]
    return {row["fault"] for row in found}


def signals(text: str) -> list[signal.Signals]:
    try:
        return [signal.Signals[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is not a signal: write for example SIGKILL,SIGTERM") from error


def names(text: str) -> list[str]:
    chosen = text.split(",")
    if unknown := set(chosen) - set(GROUPS):
        raise argparse.ArgumentTypeError(f"{unknown.pop()!r} is no group: write some of {','.join(GROUPS)}")
    return chosen


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--groups", type=names, default=",".join(GROUPS), help="default: %(default)s")
    parser.add_argument("--only", type=re.compile, default="", metavar="REGEX", help="names of kinds and surroundings")
    parser.add_argument("--kills", type=int, default=25, metavar="N", help="kills by each signal; default: %(default)s")
    parser.add_argument("--kills-per-kind", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--signals", type=signals, default="SIGKILL", metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--disk", type=int, default=2, metavar="N", help="faults of each kind; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.csv", help="rows are added")
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV file")
    options = parser.parse_args(argv)
    console = Console()
    place = Path(tempfile.mkdtemp(prefix="fastadaad-faults-"))
    if options.rewrite:
        options.output.unlink(missing_ok=True)
    measured: list[dict[str, object]] = []
    done = measured_before(options.output, options.seed)
    for found in chain(measure_signals(options, place, console), measure_others(options, place, done, console)):
        write_rows(options.output, found, torch.device("cpu"))
        measured += found
        print_rows(found, SHOWN)
    tried, survived = (sum(int(str(row[name])) for row in measured) for name in ("tried", "survived"))
    console.print(f"{survived} survived / {tried} tried")
    if survived < tried:
        console.print(f"runs and their output are in {place}")
        raise SystemExit(1)
    shutil.rmtree(place)
