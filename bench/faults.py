"""Short trainings that are killed, stopped or lose their disk, and are resumed: `python -m bench faults`.

Each process is `fastadaad train ... --run-folder FOLDER --resume` and has one fault, until the run has ended. Some
processes are killed at a random moment, others while they save a checkpoint, write weights, validate or evaluate. At
the end the weights and the untimed columns of the tables must be bitwise equal to those of an undisturbed run. A kill
before the first step has nothing to lose. The effect of a power loss on the disk is not tested. The exit code is 1 if
a fault was not survived.
"""

import argparse
import shutil
import signal
import tempfile
import time
from collections import deque
from pathlib import Path

import torch
from rich.console import Console

from .faults_disk import NO_MOUNT, disk_faults, small_disk
from .faults_moments import Plan, kills
from .faults_run import RUNS, Fault, Process, Start, Struck, start, under_faults
from .tables import print_rows
from .timing import RESULTS, write_rows

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


def measure(options: argparse.Namespace, place: Path, console: Console) -> list[dict[str, object]]:
    """Returns the rows of all signals and disk faults in `options`; the runs are in the folder `place`."""
    whole = place / "whole"
    with console.status("the run without faults"):
        plan = undisturbed(start, whole)
    console.print(f"without faults: {plan}", soft_wrap=True)
    measured = []
    for number in options.signals:
        faults = kills(options.kills, number, plan, options.seed)
        struck = strike(place / number.name, whole, faults, number.name, console)
        measured += rows(struck, number.name, options.seed)
    disk = place / "disk"
    disk.mkdir()
    with small_disk(disk / RUNS) as can_mount:
        if not can_mount:
            console.print(NO_MOUNT)
        faults = disk_faults(options.disk, disk / RUNS, plan, options.seed, can_mount=can_mount)
        struck = strike(disk, whole, faults, "disk", console)
    return measured + rows(struck, signal.SIGKILL.name, options.seed)


def signals(text: str) -> list[signal.Signals]:
    try:
        return [signal.Signals[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is not a signal: write for example SIGKILL,SIGTERM") from error


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=25, metavar="N", help="kills by each signal; default: %(default)s")
    parser.add_argument("--signals", type=signals, default="SIGKILL", metavar="NAMES", help="default: %(default)s")
    parser.add_argument("--disk", type=int, default=2, metavar="N", help="faults of each kind; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments; default: %(default)s")
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.csv", help="rows are added")
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV file")
    options = parser.parse_args(argv)
    console = Console()
    place = Path(tempfile.mkdtemp(prefix="fastadaad-faults-"))
    measured = measure(options, place, console)
    if options.rewrite:
        options.output.unlink(missing_ok=True)
    write_rows(options.output, measured, torch.device("cpu"))
    print_rows(measured, SHOWN)
    num_tried, num_survived = (sum(row[name] for row in measured) for name in ("tried", "survived"))
    console.print(f"{num_survived} survived / {num_tried} tried")
    if num_survived < num_tried:
        console.print(f"runs and their output are in {place}")
        raise SystemExit(1)
    shutil.rmtree(place)
