"""Program of each rank of a test: `torchrun tests/several_processes.py FOLDER`, with tasks in FOLDER/tasks.json.

A task is a training: its name, its settings, and a fault of one rank.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console

from fastadaad.config_io import read_config
from fastadaad.runtime.distributed import joined_process_group
from fastadaad.training.trainer import Trainer


def fail(how: str, folder: Path) -> None:
    """Fails in the way named `how`."""
    if how == "waits":  # until the test has acted
        (folder / "waiting").write_text("")
        while not (folder / "go").exists():
            time.sleep(0.05)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "stopped":
        # torchrun gives a stopped process 30 s to end. This kills it as soon as rank 0 has ended.
        end = f"while kill -0 {(folder / 'pid0').read_text()}; do sleep 0.1; done; kill -KILL {os.getpid()}"
        subprocess.Popen(["sh", "-c", end], start_new_session=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "hangs":
        time.sleep(3600)
    if how == "raises":
        raise RuntimeError("planted failure")
    if how == "refuses":
        raise ValueError("planted mistake: mend it")
    if how == "SIGTERM":
        os.kill(os.getpid(), signal.SIGTERM)


def run_task(folder: Path, task: dict, rank: int) -> None:
    config = read_config(folder / f"{task['name']}.json")
    run = Trainer(config, folder / task["name"], Console(width=200), resume=task.get("resume", False))
    fault = task.get("fault")
    if fault is not None and fault["rank"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        take_step = run.distiller.step

        def step_or_fail(*arguments, **options):
            if run.state.step == fault["step"]:
                fail(fault["how"], folder)
            return take_step(*arguments, **options)

        run.distiller.step = step_or_fail
    run.train()
    torch.save(run.state.student.state_dict(), folder / f"{task['name']}-rank{rank}.pt")


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with joined_process_group(
        os.environ.get("DEVICE", "cpu"), float(os.environ.get("RANK_TIMEOUT_S", "60"))
    ) as process_group:
        (folder / f"pid{process_group.rank}").write_text(str(os.getpid()))
        for task in json.loads((folder / "tasks.json").read_text()):
            run_task(folder, task, process_group.rank)
        from torch import _dynamo  # noqa: F401  # as a compiled evaluation does, in the middle of a run
    threads = Path("/proc/self/task").glob("*/comm")
    (folder / f"threads{process_group.rank}").write_text("".join(comm.read_text() for comm in threads))


if __name__ == "__main__":
    main()
