"""Ranks of one training, as torchrun starts them: their group, their collectives, and the report of a failed one."""

import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

# Before any group exists: functions in it keep, as a default, the group of the moment of its import (torch.compile
# imports it), whose threads would then run into the end of the interpreter ("terminate called without ...").
import torch.distributed.nn
from torch import Tensor

from fastadaad.runtime.text import line_of
from fastadaad.runtime.watchdog import Watchdog
from fastadaad.runtime.workers import EXIT_CODE, lost_worker

Value = TypeVar("Value")

# Variables of torchrun's processes: the one that they are known by, and the numbers that each of them needs.
TORCHRUN = "TORCHELASTIC_RUN_ID"
RANK_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")
# Seconds between two checks of the other ranks.
POLL_S = 0.05
# Seconds that the other ranks have to answer after one of them has lost contact.
GRACE_S = 3.0
# Seconds that torchrun's store has to answer a rank that ends.
ANSWER_S = 2 * GRACE_S
# Ratio of the collectives' timeout to the watchdog's, so that a hanging rank reports before the others give up.
TIMEOUT_RATIO = 1.5


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """Rank of this process and number of ranks that train together; by default this process alone."""

    rank: int = 0
    size: int = 1
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """True on rank 0, which prints and writes for all ranks."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """True on the rank that downloads for all ranks that share its disk."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def all_gather(self, value: Value) -> list[Value]:
        """Returns the values of all ranks, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.waiting():
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Value) -> Value:
        """Returns the value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        with self.waiting():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Sums `tensor` over all ranks, in place, and returns it."""
        if self.size > 1:
            with self.waiting():
                dist.all_reduce(tensor)
        return tensor

    def progress(self) -> None:
        """Reports a finished step or batch: from here on the watchdog takes long silence for a hang."""
        if self.watchdog is not None:
            self.watchdog.progress()

    def pause(self) -> None:
        """Switches the watchdog off until the next progress."""
        if self.watchdog is not None:
            self.watchdog.off()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Marks a wait for other ranks, or for a device that waits for them: the watchdog rests inside."""
        if self.watchdog is not None:
            self.watchdog.rest()
        try:
            yield
        finally:
            if self.watchdog is not None:
                self.watchdog.resume()


_joined: ProcessGroup | None = None


def current_process_group() -> ProcessGroup:
    """Returns the group of joined_process_group or of torch.distributed, or this process alone."""
    if _joined is not None:
        return _joined
    if not (dist.is_available() and dist.is_initialized()):
        return ProcessGroup()
    return ProcessGroup(rank=dist.get_rank(), size=dist.get_world_size())


def started_by_torchrun() -> bool:
    """Returns True in a process of torchrun.

    Raises:
        ValueError: Only some of torchrun's variables are set.
    """
    if TORCHRUN not in os.environ:
        return False
    for name in RANK_VARIABLES:
        if not os.environ.get(name, "").isdecimal():
            raise ValueError(
                f"{TORCHRUN} is set and {name} is {os.environ.get(name, 'missing')}: start with torchrun, or unset "
                f"{TORCHRUN}"
            )
    return True


def restarted_by_torchrun() -> bool:
    """Returns True if torchrun started these ranks after earlier ones failed."""
    return _num_restarts() > 0


def _num_restarts() -> int:
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return int(count) if count.isdecimal() else 0


@contextmanager
def joined_process_group(device: str, timeout_s: float) -> Iterator[ProcessGroup]:
    """Joins the ranks that torchrun started; without torchrun the group is this process alone.

    An exception in one rank, or silence for `timeout_s` seconds, ends all ranks: torchrun sees one fail and ends the
    others. The first rank to notice prints the reason.

    Args:
        device: Name of the device, such as cuda, cpu or auto.
        timeout_s: Seconds without progress after which a rank counts as hanging.

    Raises:
        ValueError: The GPU of this rank does not exist.
    """
    global _joined
    if not started_by_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield current_process_group()
        return
    timeout = timedelta(seconds=TIMEOUT_RATIO * timeout_s)
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=timeout)))
    # Until the ranks have met: the keys of this start by torchrun, as the store may hold keys of an earlier start.
    reporter = FailureReporter(dist.PrefixStore(f"start {_num_restarts()}", store), rank, size)
    watchdog = None
    try:
        store = _own_prefix(store, rank, size, time.monotonic() + timeout.total_seconds())
        reporter = FailureReporter(store, rank, size)
        dist.init_process_group(_backend(device), store=store, rank=rank, world_size=size, timeout=timeout)
        watchdog = Watchdog(timeout_s, reporter.hung)
        _joined = ProcessGroup(rank=rank, size=size, watchdog=watchdog)
        yield _joined
    except Exception as error:  # not Interrupted, which all ranks raise at the same step
        reporter.failed(error)
    finally:
        _joined = None
        if watchdog is not None:
            watchdog.stop()
            dist.destroy_process_group()


def _own_prefix(store: dist.Store, rank: int, size: int, deadline: float) -> dist.Store:
    """Returns the keys of `store` that belong to these ranks alone.

    torchrun's store may outlive a restart and hold the addresses of dead processes, and its count of restarts differs
    between nodes. So each rank draws a name, rank 0's name is the prefix, and rank 0 lists the ranks that it has met: a
    rank that finds itself in the list knows that the prefix is not an old one.

    Raises:
        dist.DistStoreError: The ranks have not met before `deadline` (of time.monotonic).
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("prefix", own)
        store.set(f"{own}/met", " ".join(store.get(f"{own}/{other}").decode() for other in range(1, size)))
        return dist.PrefixStore(own, store)
    while time.monotonic() < deadline:
        prefix = store.get("prefix").decode()
        store.set(f"{prefix}/{rank}", own)
        if store.check([f"{prefix}/met"]) and own.encode() in store.get(f"{prefix}/met"):
            return dist.PrefixStore(prefix, store)
        time.sleep(POLL_S)
    raise dist.DistStoreError(f"rank {rank} has not met the other ranks")


def _backend(device: str) -> str:
    """Returns the backend of the collectives; on GPUs each rank takes its own GPU.

    Raises:
        ValueError: This rank has no GPU.
    """
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return "gloo"
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"process {local_rank} of this node has no GPU: there are {torch.cuda.device_count()}; start as many "
            "processes with --nproc-per-node, or set device=cpu"
        )
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"


class FailureReporter:
    """Prints the reason of a failure once per job, from the first rank that fails, and ends the process."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def failed(self, error: Exception) -> NoReturn:
        """Reports `error`, or the ranks with which contact was lost."""
        if _is_lost_contact(error):
            missing: list[int] = _answer(self._missing, [])
            names = ", ".join(map(str, missing)) or "unknown"
            self._end(f"fastadaad: lost contact, as rank {self._rank} noticed, with rank {names}", code=1)
        if lost := lost_worker(error):
            self._end(f"fastadaad: rank {self._rank}: {line_of(lost)}", code=EXIT_CODE)
        if isinstance(error, (ValueError, OSError)):
            self._end(f"fastadaad: rank {self._rank}: {line_of(error)}", code=2)
        trace = "".join(traceback.format_exception(error))
        self._end(f"{trace}fastadaad: rank {self._rank} failed, which ends the others", code=1)

    def hung(self, seconds: float, stack: str) -> NoReturn:
        """Reports the stack of the main thread of a hanging rank."""
        line = f"fastadaad: rank {self._rank} has made no progress for {seconds:.0f} s, which ends the others"
        self._end(f"{stack}{line}", code=1)

    def _missing(self) -> list[int]:
        """Returns the ranks that do not notice the loss of contact."""
        self._store.set(f"noticed/{self._rank}", "1")
        deadline = time.monotonic() + GRACE_S
        missing = set(range(self._size))
        while missing and time.monotonic() < deadline:
            missing = {rank for rank in missing if not self._store.check([f"noticed/{rank}"])}
            time.sleep(POLL_S)
        return sorted(missing)

    def _end(self, text: str, code: int) -> NoReturn:
        if _answer(lambda: self._store.add("failure report", 1) == 1, True):
            with suppress(OSError, ValueError):  # nobody may read it
                print(text, file=sys.stderr, flush=True)
        os._exit(code)  # not sys.exit, which would wait for communication that never ends


def _answer(query: Callable[[], Value], default: Value) -> Value:
    """Returns the result of `query`, or `default` if the store is gone or behind a cut link."""
    try:
        return ThreadPoolExecutor(1).submit(query).result(ANSWER_S)  # the store itself may wait for many minutes
    except Exception:
        return default


def _is_lost_contact(error: Exception) -> bool:
    """Returns True for an error of the communication itself; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
