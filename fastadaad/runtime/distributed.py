"""The processes of one training, as torchrun starts them: who one is, what all know, and what becomes of a lost one."""

import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastadaad.runtime.text import line_of
from fastadaad.runtime.watchdog import Watchdog

Value = TypeVar("Value")

# Seconds between two looks at whether others are there.
POLL_S = 0.05
# Seconds that the others have to say that they are there, once one of them has lost contact.
GRACE_S = 3.0
# Seconds that torchrun's store has to answer a process that ends.
ANSWER_S = 2 * GRACE_S
# Of the timeout of a process that hangs; the others wait for it that much longer, so that it can say where it hangs.
WAITING_SHARE = 1.5


@dataclass(frozen=True, kw_only=True)
class Processes:
    """How many there are and which of them this one is."""

    rank: int = 0
    count: int = 1
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    @property
    def is_first_of_node(self) -> bool:
        """Whether this one fetches for all that share its disk."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def gathered(self, value: Value) -> list[Value]:
        """The values of all, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self.waiting():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """The first one's value."""
        if self.count == 1:
            return value
        values = [value]
        with self.waiting():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed over all in place."""
        if self.count > 1:
            with self.waiting():
                dist.all_reduce(tensor)
        return tensor

    def progress(self) -> None:
        """A step or a batch is done: from here on a process that does nothing for too long hangs, see Watchdog."""
        if self.watchdog is not None:
            self.watchdog.progress()

    def pause(self) -> None:
        """What follows may take as long as it likes, up to the next progress."""
        if self.watchdog is not None:
            self.watchdog.off()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this process waits for others, or the device does: it is not the one that hangs."""
        if self.watchdog is not None:
            self.watchdog.rest()
        try:
            yield
        finally:
            if self.watchdog is not None:
                self.watchdog.resume()


_joined: Processes | None = None


def current_processes() -> Processes:
    """Those of joined_processes or of another process group, where there is one; else this process alone."""
    if _joined is not None:
        return _joined
    if not (dist.is_available() and dist.is_initialized()):
        return Processes()
    return Processes(rank=dist.get_rank(), count=dist.get_world_size())


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarted_by_torchrun() -> bool:
    """Whether the processes before these failed."""
    return _num_restarts() > 0


def _num_restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def joined_processes(device: str, timeout_s: float) -> Iterator[Processes]:
    """The processes that torchrun started, in one process group; where it did not, this one alone.

    An exception in one of them, or silence for `timeout_s` seconds, ends all: torchrun sees one fail and ends the
    others. What there is to say is said once, by the first that notices. Raises ValueError for a GPU that there is not.
    """
    global _joined
    if not started_by_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        yield current_processes()
        return
    waiting = timedelta(seconds=WAITING_SHARE * timeout_s)
    store, rank, count = next(iter(dist.rendezvous("env://", timeout=waiting)))
    # Until they have met, of this start by torchrun; the store may have words of an earlier one.
    last_words = LastWords(dist.PrefixStore(f"start {_num_restarts()}", store), rank, count)
    watchdog = None
    try:
        store = _own_part(store, rank, count, time.monotonic() + waiting.total_seconds())
        last_words = LastWords(store, rank, count)
        backend = _backend(device)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=waiting)
        watchdog = Watchdog(timeout_s, last_words.hung)
        _joined = Processes(rank=rank, count=count, watchdog=watchdog)
        yield _joined
    except Exception as error:  # not Interrupted, which all of them are at the same step
        last_words.failed(error)
    finally:
        _joined = None
        if watchdog is not None:
            watchdog.stop()
            dist.destroy_process_group()


def _own_part(store: dist.Store, rank: int, count: int, deadline: float) -> dist.Store:
    """The part of `store` that is of these processes alone.

    torchrun's store may outlive a restart, with the addresses of processes that are gone in it, and its count of
    restarts is not the same on all nodes. So each process draws a name, the first one's is that of the part, and the
    first one lists whom it has met: who finds itself in the list knows that the name is not an old one. Raises
    DistStoreError after `deadline` (of time.monotonic).
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set("part", own)
        store.set(f"{own}/met", " ".join(store.get(f"{own}/{other}").decode() for other in range(1, count)))
        return dist.PrefixStore(own, store)
    while time.monotonic() < deadline:
        part = store.get("part").decode()
        store.set(f"{part}/{rank}", own)
        if store.check([f"{part}/met"]) and own.encode() in store.get(f"{part}/met"):
            return dist.PrefixStore(part, store)
        time.sleep(POLL_S)
    raise dist.DistStoreError(f"rank {rank} has not met the other processes")


def _backend(device: str) -> str:
    """What the processes talk by; on GPUs each takes its own. Raises ValueError where there is none for this one."""
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


class LastWords:
    """What a process says before it ends, unless another one has said why all of them do."""

    def __init__(self, store: dist.Store, rank: int, count: int) -> None:
        self._store, self._rank, self._count = store, rank, count

    def failed(self, error: Exception) -> NoReturn:
        """Report `error`, or whom contact was lost with."""
        if _is_lost_contact(error):
            missing: list[int] = _answer(self._missing, [])
            names = ", ".join(map(str, missing)) or "unknown"
            self._end(f"fastadaad: lost contact, as rank {self._rank} noticed, with rank {names}", code=1)
        if isinstance(error, (ValueError, OSError)):
            self._end(f"fastadaad: rank {self._rank}: {line_of(error)}", code=2)
        where = "".join(traceback.format_exception(error))
        self._end(f"{where}fastadaad: rank {self._rank} failed, which ends the others", code=1)

    def hung(self, seconds: float, stack: str) -> NoReturn:
        """Report where the main thread is."""
        line = f"fastadaad: rank {self._rank} has made no progress for {seconds:.0f} s, which ends the others"
        self._end(f"{stack}{line}", code=1)

    def _missing(self) -> list[int]:
        """The ranks that do not notice that contact is lost."""
        self._store.set(f"noticed/{self._rank}", "1")
        deadline = time.monotonic() + GRACE_S
        missing = set(range(self._count))
        while missing and time.monotonic() < deadline:
            missing = {rank for rank in missing if not self._store.check([f"noticed/{rank}"])}
            time.sleep(POLL_S)
        return sorted(missing)

    def _end(self, text: str, code: int) -> NoReturn:
        if _answer(lambda: self._store.add("last words", 1) == 1, True):
            print(text, file=sys.stderr, flush=True)
        os._exit(code)  # not sys.exit: communication that never ends would hold it up


def _answer(ask: Callable[[], Value], otherwise: Value) -> Value:
    """What `ask` returns; `otherwise` where it cannot, as the store may be gone, or be behind a link that is cut."""
    try:
        return ThreadPoolExecutor(1).submit(ask).result(ANSWER_S)  # the store itself may wait for many minutes
    except Exception:
        return otherwise


def _is_lost_contact(error: Exception) -> bool:
    """Whether `error` is of the communication itself; gloo raises plain RuntimeErrors."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
