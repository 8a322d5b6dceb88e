"""Locks exclude other processes, can be waited for, and do not outlive their process in its workers."""

import errno
import fcntl
import multiprocessing
import os
import stat
import subprocess
import sys
import threading
import time

import pytest
import torch

from fastadaad.data import Sampling
from fastadaad.data.engines.torch_loader import TorchPipeline
from fastadaad.runtime.locks import LOCK_FILE, close_inherited, locked, run_lock
from fastadaad.training.folders import holds_run

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


@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOLCK])
def test_a_file_in_a_folder_is_locked_if_folders_cannot_be(tmp_path, monkeypatch, code):
    """Stands for NFS, which locks files that are open for writing."""
    lock = fcntl.flock

    def lock_files_alone(descriptor: int, operation: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_files_alone)
    with run_lock(tmp_path):
        with pytest.raises(ValueError, match="another process trains in"), run_lock(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]
    with run_lock(tmp_path):
        pass
    assert holds_run(tmp_path)


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level("WARNING", "fastadaad"), run_lock(tmp_path):
        pass
    assert caplog.messages == [
        f"{tmp_path / LOCK_FILE} cannot be locked (Function not implemented): start one process at a time in its folder"
    ]


def test_another_error_of_a_lock_is_raised(tmp_path, monkeypatch):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error"), run_lock(tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
