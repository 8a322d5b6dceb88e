"""Faults of the disk that a run meets: full, read-only, and damage to the latest checkpoint between two processes.

A full and a read-only disk are real ones: a small file system in memory that is filled, and a folder that is mounted
read-only over itself. For these the user must be allowed to mount.
"""

import io
import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastadaad.training.checkpoint import CHECKPOINTS, NUM_KEPT, checkpoint_paths

from .faults_moments import ANY, WINDOW_SHARE, Aim, Plan, is_reached
from .faults_run import DAMAGED_AT, Fault, Process, usable_checkpoints

FULL = "full disk"
READ_ONLY = "read-only folder"
TRUNCATED = "truncated checkpoint"
FLIPPED = "checkpoint with a flipped bit"
DISK_MB = 8  # a run is about 1 MB
NO_MOUNT = f"left out: {FULL}, {READ_ONLY} (this user may not mount file systems)"
REPORT = "cannot be written"  # what a run says then

HAS_TWO = Aim(condition=lambda folder, plan: len(usable_checkpoints(folder)) >= NUM_KEPT)


def mount(*words: str | Path) -> bool:
    """Whether `mount WORDS` succeeded."""
    try:
        return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Whether `place`, which is made, is a small disk of its own inside."""
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", place):
        yield False
        return
    try:
        yield True
    finally:
        unmount(place)


def disk_faults(count: int, place: Path, plan: Plan, seed: int, *, can_mount: bool) -> list[Fault]:
    """So many of each kind, in turn; `place` is the disk that the runs are on, which the mounts need to be a small one.

    A run whose end comes while it cannot write ends with exit code 2 instead of by the kill.
    """
    faults = []
    for index in range(count):
        draws = random.Random(f"{seed} {index}")
        if can_mount:
            faults += [
                Fault(strike=partial(_fill, place / "filler", plan, draws), exit_codes=(-signal.SIGKILL, 2)),
                Fault(strike=partial(_be_read_only, plan, draws), exit_codes=(-signal.SIGKILL, 2)),
            ]
        faults += [
            Fault(strike=partial(_damage, TRUNCATED, truncate, plan, draws)),
            Fault(strike=partial(_damage, FLIPPED, flip_a_bit, plan, draws)),
        ]
    return faults


def _fill(filler: Path, plan: Plan, draws: random.Random, process: Process) -> str | None:
    """Kill the process when it has trained on for a while on a disk without space."""
    if not is_reached(ANY, plan, draws, process):
        return None
    try:
        with filler.open("wb", buffering=0) as file:
            is_told = process.wait_for(lambda: write_all_that_fits(file) or REPORT in process.printed())
        return _kill_later(FULL, plan, draws, process) if is_told else None
    finally:
        filler.unlink()


def write_all_that_fits(file: io.RawIOBase) -> None:
    """Fill the disk: what another file gave back since the last call too."""
    size = 2**20
    while size:
        try:
            file.write(bytes(size))
        except OSError:
            size //= 2


def _be_read_only(plan: Plan, draws: random.Random, process: Process) -> str | None:
    """Kill the process when it has trained on for a while without a folder for its checkpoints."""
    folder = process.folder / CHECKPOINTS
    if not (is_reached(HAS_TWO, plan, draws, process) and process.wait_for(partial(mount_read_only, folder))):
        return None
    try:
        is_told = process.wait_for(lambda: REPORT in process.printed())
        return _kill_later(READ_ONLY, plan, draws, process) if is_told else None
    finally:
        unmount(folder)


def mount_read_only(folder: Path) -> bool:
    """Whether `folder` now is read-only; not while a file in it is being written."""
    if not mount("--bind", folder, folder):
        return False
    if mount("-o", "remount,ro,bind", folder):
        return True
    unmount(folder)
    return False


def _kill_later(name: str, plan: Plan, draws: random.Random, process: Process) -> str:
    process.wait(draws.uniform(0, WINDOW_SHARE * plan.training_s))
    process.child.send_signal(signal.SIGKILL)
    process.exit_code()
    return name


def _damage(
    name: str, damage: Callable[[Path, random.Random], None], plan: Plan, draws: random.Random, process: Process
) -> str | None:
    """Kill the process, then damage what it saved last."""
    if not is_reached(HAS_TWO, plan, draws, process):
        return None
    process.child.send_signal(signal.SIGKILL)
    if process.exit_code() != -signal.SIGKILL:
        return None
    newest = checkpoint_paths(process.folder)[0]
    damage(newest, draws)
    os.utime(newest, (DAMAGED_AT, DAMAGED_AT))
    return name


def truncate(path: Path, draws: random.Random) -> None:
    os.truncate(path, draws.randrange(path.stat().st_size))


def flip_a_bit(path: Path, draws: random.Random) -> None:
    """Of a tensor: a bit of the padding around the header has no meaning."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content) // 2, len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
