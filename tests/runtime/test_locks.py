"""Locks exclude other processes, can be waited for, and do not outlive their process in its workers."""

import multiprocessing
import subprocess
import sys
import threading
import time

import pytest
import torch

from fastadaad.data import Sampling
from fastadaad.data.engines.torch_loader import TorchPipeline
from fastadaad.runtime.locks import close_inherited, locked, run_lock

HOLDER = """
import sys
from pathlib import Path
from fastadaad.runtime.locks import locked
with locked(Path(sys.argv[1])) as own:
    print(own, flush=True)
    sys.stdin.read()
"""


def test_a_lock_excludes_others_until_it_is_released(tmp_path):
    file = tmp_path / "lock"
    file.touch()
    for path in (tmp_path, file):
        with locked(path) as first, locked(path) as second:
            assert first
            assert not second
        with locked(path) as third:
            assert third


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"True\n"
        with pytest.raises(ValueError, match="another process trains in"), run_lock(tmp_path):
            pass
        holder.kill()
    with run_lock(tmp_path):
        pass


def test_a_lock_can_be_waited_for(tmp_path):
    held, seen = threading.Event(), []

    def hold() -> None:
        with locked(tmp_path):
            held.set()
            time.sleep(0.3)
            seen.append("released")

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    with locked(tmp_path, wait=True) as own:
        assert own
        assert seen == ["released"]
    holder.join()


def wait_twice(barrier) -> None:
    close_inherited()
    barrier.wait()
    barrier.wait()


def test_a_worker_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    processes = multiprocessing.get_context("fork")
    barrier = processes.Barrier(2, timeout=30)
    with locked(tmp_path):
        worker = processes.Process(target=wait_twice, args=(barrier,), daemon=True)
        worker.start()
        barrier.wait()
    with locked(tmp_path) as own:
        assert own
    barrier.wait()
    worker.join()
    assert worker.exitcode == 0


def test_the_workers_of_the_torch_engine_hold_no_lock(tmp_path):
    images, sampling = torch.zeros(8, 4, 4, 3, dtype=torch.uint8), Sampling(batch_size=2)
    pipeline = TorchPipeline(images, torch.arange(8), sampling=sampling, num_workers=2)
    with locked(tmp_path):
        batches = pipeline.epoch(0)
        for _ in range(2):  # one batch of each worker
            next(batches)
    with locked(tmp_path) as own:
        assert own
        assert len(multiprocessing.active_children()) == 2
    batches.close()
