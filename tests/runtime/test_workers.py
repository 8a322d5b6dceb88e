"""Workers that read data: a killed one ends the reading with one line, and none is left."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastadaad.runtime.workers import LostWorkerError, batches_of, lost_worker

TORCHS = (
    "DataLoader worker (pid 4711) is killed by signal: Killed. ",
    "DataLoader worker (pid(s) 4711, 4712) exited unexpectedly",
)


def ignore_sigterm(worker: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(64, 1)), num_workers=2, worker_init_fn=ignore_sigterm)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_killed_worker_ends_the_reading_and_the_other_worker(number):
    def read() -> None:
        with batches_of(loader()) as batches:
            next(batches)
            workers.extend(batches._workers)
            os.kill(workers[0].pid, number)
            workers[0].join()
            time.sleep(0.01)  # torch's handler of SIGCHLD may raise here
            for _ in batches:
                pass

    workers: list = []
    with pytest.raises(LostWorkerError, match=r"has died \(DataLoader worker .*resume the run .*data.num_workers"):
        read()
    assert not any(worker.is_alive() for worker in workers)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), RuntimeError("fd")]
)
def test_a_batch_that_a_killed_worker_cannot_hand_over_is_a_lost_worker(error):
    def read() -> None:
        with batches_of(loader()) as batches:
            next(batches)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # without torch's handler, which may not have run yet
            os.kill(batches._workers[0].pid, signal.SIGKILL)
            raise error

    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(LostWorkerError, match=r"has died \(process \d+ with exit code -9\)"):
            read()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_an_error_with_living_workers_stays_what_it_is():
    def read() -> None:
        with batches_of(loader()):
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        read()


@pytest.mark.parametrize("ends", ["exhausted", "left", "error"])
def test_workers_end_with_their_reader(ends):
    workers: list = []
    try:
        with batches_of(loader()) as batches:
            next(batches)
            workers.extend(batches._workers)
            if ends == "exhausted":
                list(batches)
            elif ends == "error":
                raise KeyError(ends)
    except KeyError:
        assert ends == "error"
    assert len(workers) == 2
    assert not any(worker.is_alive() for worker in workers)
    assert not set(workers) & set(multiprocessing.active_children())


def test_only_torchs_messages_about_workers_are_a_lost_worker():
    for message in TORCHS:
        assert isinstance(lost_worker(RuntimeError(message)), LostWorkerError)
        assert lost_worker(ValueError(message)) is None
    assert lost_worker(RuntimeError("shapes differ")) is None


PROGRAM = """
    import os, signal, sys
    from test_workers import loader
    from fastadaad.runtime.workers import batches_of

    def read():
        with batches_of(loader()) as batches:
            yield next(batches)

    kept = read()  # until the interpreter ends, as in a traceback
    next(kept)
    print("read")
"""


@pytest.mark.slow
def test_an_interpreter_ends_although_a_reader_is_kept():
    """multiprocessing waits at exit for workers that ignore its SIGTERM."""
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
