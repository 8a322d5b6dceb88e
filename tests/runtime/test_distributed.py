"""Reports of a rank that cannot join the others or has lost contact; several_processes.py has whole trainings."""

import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from fastadaad.runtime import distributed
from fastadaad.runtime.distributed import FailureReporter, joined_process_group

LONG_S = 30.0  # a longer wait has failed
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """Replaces the end of a process by SystemExit, and shortens the waits."""

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(distributed.os, "_exit", end)
    monkeypatch.setattr(distributed, "GRACE_S", 0.2)
    monkeypatch.setattr(distributed, "ANSWER_S", 0.5)


@pytest.fixture
def store(monkeypatch) -> dist.HashStore:
    """Replaces the store of torchrun, which has started this process as the second of three."""
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=0.2))
    monkeypatch.setattr(distributed.dist, "rendezvous", lambda *arguments, **options: iter([(store, 1, 3)]))
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, "", "two", "-1"])
def test_a_part_of_torchruns_variables_is_refused(store, monkeypatch, name, value):
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    line = rf"^TORCHELASTIC_RUN_ID is set and {name} is ({value}|missing): start with torchrun, or unset TORCHELASTIC_"
    with pytest.raises(ValueError, match=line), joined_process_group("cpu", LONG_S):
        pass
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with joined_process_group("cpu", LONG_S) as group:
        assert group.size == 1


def test_a_missing_rank_is_named(store, capsys):
    """Rank 2 has noticed the loss too, so rank 0 is missing."""
    store.set("start 0/noticed/2", "1")
    with pytest.raises(SystemExit) as end, joined_process_group("cpu", 0.1):
        pass
    assert end.value.code == 1
    assert capsys.readouterr().err == "fastadaad: lost contact, as rank 1 noticed, with rank 0\n"


def test_any_rank_without_a_gpu_reports_it(store, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "_own_prefix", lambda store, *_: store)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit) as end, joined_process_group("cuda", 0.1):
        pass
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastadaad: rank 1: process 1 of this node has no GPU: there are 1; ")


class DeafStore:
    """Store behind a cut link."""

    def __init__(self) -> None:
        self.mended = threading.Event()

    def set(self, *_) -> None:
        return

    def add(self, *_) -> int:
        return int(self.mended.wait(LONG_S))

    check = add


def test_a_rank_ends_even_if_the_store_does_not_answer(capsys):
    store = DeafStore()
    with pytest.raises(SystemExit):
        FailureReporter(store, 1, 2).failed(dist.DistNetworkError("timed out"))
    store.mended.set()
    assert capsys.readouterr().err == "fastadaad: lost contact, as rank 1 noticed, with rank unknown\n"


def test_only_the_first_failing_rank_prints(capsys):
    store = dist.HashStore()
    for rank in (1, 0):
        with pytest.raises(SystemExit) as end:
            FailureReporter(store, rank, 2).failed(ValueError("mend\nit"))
        assert end.value.code == 2
    assert capsys.readouterr().err == "fastadaad: rank 1: mend it\n"
