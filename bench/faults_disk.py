"""Disk faults of a run: a full disk, a read-only folder, and damage to the latest checkpoint between two processes.

The full and the read-only disk are real: a small file system in memory that is filled, and a folder that is mounted
read-only over itself. Both require permission to mount.
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

from .faults_moments import ANY, WINDOW_FRACTION, Aim, Plan, is_reached
from .faults_run import DAMAGED_AT, Fault, Process, usable_checkpoints

FULL = "full disk"
READ_ONLY = "read-only folder"
TRUNCATED = "truncated checkpoint"
FLIPPED = "checkpoint with a flipped bit"
DISK_MB = 8  # a run is about 1 MB
NO_MOUNT = f"skipped: {FULL}, {READ_ONLY} (this user may not mount file systems)"
REPORT = "cannot be written"  # in the warning of the run

HAS_TWO = Aim(condition=lambda folder, plan: len(usable_checkpoints(folder)) >= NUM_KEPT)


def mount(*words: str | Path) -> bool:
    """Returns True if `mount WORDS` succeeded."""
    try:
        return subprocess.run(["mount", *map(str, words)], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


@contextmanager
def small_disk(place: Path) -> Iterator[bool]:
    """Creates `place` and mounts a small disk there; yields False if this user may not mount."""
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", place):
        yield False
        return
    try:
        yield True
    finally:
        unmount(place)


def disk_faults(count: int, place: Path, plan: Plan, seed: int, *, can_mount: bool) -> list[Fault]:
    """Returns `count` faults of each kind, in turn.

    A run that reaches its end while it cannot write exits with code 2 before the kill.

    Args:
        count: Faults of each kind.
        place: Folder of the runs; with can_mount, a small disk.
        plan: Schedule of the undisturbed run.
        seed: Seed of the moments and the damage.
        can_mount: Includes the full disk and the read-only folder.
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
    """Fills the disk, lets the process train on for a while, and kills it."""
    if not is_reached(ANY, plan, draws, process):
        return None
    try:
        with filler.open("wb", buffering=0) as file:
            has_warned = process.wait_for(lambda: write_all_that_fits(file) or REPORT in process.printed())
        return _kill_later(FULL, plan, draws, process) if has_warned else None
    finally:
        filler.unlink()


def write_all_that_fits(file: io.RawIOBase) -> None:
    """Fills the disk, including space that other files have freed since the last call."""
    size = 2**20
    while size:
        try:
            file.write(bytes(size))
        except OSError:
            size //= 2


def _be_read_only(plan: Plan, draws: random.Random, process: Process) -> str | None:
    """Makes the folder of checkpoints read-only, lets the process train on for a while, and kills it."""
    folder = process.folder / CHECKPOINTS
    if not (is_reached(HAS_TWO, plan, draws, process) and process.wait_for(partial(mount_read_only, folder))):
        return None
    try:
        has_warned = process.wait_for(lambda: REPORT in process.printed())
        return _kill_later(READ_ONLY, plan, draws, process) if has_warned else None
    finally:
        unmount(folder)


def mount_read_only(folder: Path) -> bool:
    """Mounts `folder` read-only over itself; returns False on failure, as while a file in it is being written."""
    if not mount("--bind", folder, folder):
        return False
    if mount("-o", "remount,ro,bind", folder):
        return True
    unmount(folder)
    return False


def _kill_later(name: str, plan: Plan, draws: random.Random, process: Process) -> str:
    process.wait(draws.uniform(0, WINDOW_FRACTION * plan.training_s))
    process.child.send_signal(signal.SIGKILL)
    process.exit_code()
    return name


def _damage(
    name: str, damage: Callable[[Path, random.Random], None], plan: Plan, draws: random.Random, process: Process
) -> str | None:
    """Kills the process, then damages its latest checkpoint."""
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
    """Flips a bit in the second half of the file, in a tensor: padding around the header has no meaning."""
    content = bytearray(path.read_bytes())
    content[draws.randrange(len(content) // 2, len(content))] ^= 1 << draws.randrange(8)
    path.write_bytes(content)
