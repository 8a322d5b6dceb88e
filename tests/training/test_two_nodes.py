"""Two nodes that lose their link for a while: torchrun resumes the run from its last checkpoint on both."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from test_several_processes import SCRIPT, largest_difference, one_process, run_of
from tiny_runs import save_teacher
from two_nodes import ADDRESSES, Nodes, two_nodes, why_no_nodes

pytestmark = pytest.mark.slow

TIME_LIMIT_S = 180.0
CUT_AT_STEP = 5
LACKING = why_no_nodes()


def torchrun(number: int, folder: Path) -> list[str]:
    """Command of node `number`; node 0 hosts the rendezvous."""
    waits = "join_timeout=60,last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=3,read_timeout=10"
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29500", "--rdzv-id=test"),
        *(f"--local-addr={ADDRESSES[number]}", f"--rdzv-conf=is_host={1 - number},{waits}"),
        *map(str, (SCRIPT, folder)),
    ]


def wait_until(condition: Callable[[], bool], deadline: float, processes: list[subprocess.Popen]) -> None:
    """Waits for the condition; fails the test after the deadline, or if a process fails meanwhile."""
    while not condition():
        assert time.monotonic() < deadline, "the time limit has passed"
        assert all(process.poll() in (None, 0) for process in processes), "a node has given up"
        time.sleep(0.05)


def run_with_a_cut(nodes: Nodes, folder: Path) -> None:
    """Runs both nodes to the end; their link is cut from CUT_AT_STEP until a node notices."""
    logs = [folder / f"node{number}.log" for number in (0, 1)]
    deadline = time.monotonic() + TIME_LIMIT_S
    processes = [
        nodes.start(number, torchrun(number, folder), log, OMP_NUM_THREADS="1", RANK_TIMEOUT_S="6")
        for number, log in enumerate(logs)
    ]
    try:
        wait_until((folder / "waiting").exists, deadline, processes)
        nodes.cut()
        (folder / "go").write_text("")
        wait_until(lambda: any("lost contact" in log.read_text() for log in logs), deadline, processes)
        nodes.mend()
        wait_until(lambda: all(process.poll() == 0 for process in processes), deadline, processes)
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *(log.read_text()[-3000:] for log in logs)])) from error
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
def test_a_run_on_two_nodes_resumes_after_their_link_was_cut(tmp_path):
    teacher = save_teacher(tmp_path / "teacher.safetensors")
    config = run_of("adaad", teacher)
    (tmp_path / "run.json").write_text(json.dumps(asdict(config)))
    fault = {"rank": 1, "step": CUT_AT_STEP, "how": "waits"}
    (tmp_path / "tasks.json").write_text(json.dumps([{"name": "run", "resume": True, "fault": fault}]))
    with two_nodes() as nodes:
        run_with_a_cut(nodes, tmp_path)
    logs = [(tmp_path / f"node{number}.log").read_text() for number in (0, 1)]
    assert sum(log.count("resuming from") for log in logs) >= 1
    assert sum(f"epoch 2 of 2, step {CUT_AT_STEP}" in log for log in logs) == 1  # printed by rank 0, on one node
    alone = one_process(config, tmp_path / "alone")
    for rank in (0, 1):
        assert largest_difference(alone, torch.load(tmp_path / f"run-rank{rank}.pt")) < 2e-5
