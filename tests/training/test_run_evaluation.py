"""An evaluation by several ranks gives the results of a single rank, and no rank waits for long."""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch
from rich.console import Console
from tiny_runs import tiny_run

from fastadaad import load_model
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.watchdog import Watchdog
from fastadaad.training.data import training_data
from fastadaad.training.evaluation import evaluate_on_test_set, evaluate_on_validation_split

LONG_S = 60.0  # a thread that waits longer has failed


@dataclass(frozen=True, kw_only=True)
class Thread(ProcessGroup):
    """One rank of Threads."""

    meet: Callable[[int, object], list]

    def all_gather(self, value: object) -> list:
        return self.meet(self.rank, value)


class Threads:
    """Several ranks, each a thread of this process; records at each of their meetings the batches of each rank.

    From one meeting to the next the ranks take turns, as torch.fx traces one network at a time.
    """

    def __init__(self, count: int) -> None:
        self.count, self.meetings, self.num_batches = count, [], [0] * count
        self._values = [None] * count
        self._barrier, self._turn = threading.Barrier(count, timeout=LONG_S), threading.Lock()

    def meet(self, rank: int, value: object) -> list:
        """Returns the values of all ranks."""
        self._values[rank] = value
        self._wait()
        if rank == 0:
            self.meetings.append(list(self.num_batches))
        values = list(self._values)
        self._wait()
        return values

    def _wait(self) -> None:
        self._turn.release()
        try:
            self._barrier.wait()
        finally:
            self._turn.acquire()

    def run(self, work) -> list:
        """Returns work(process_group) of each rank."""

        def run_one(rank: int) -> object:
            with self._turn:
                return work(Thread(rank=rank, size=self.count, meet=self.meet))

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(run_one, range(self.count)))


@pytest.fixture(scope="module")
def run():
    """Configuration whose attacks have no random start, and a network for each rank."""
    config = tiny_run()
    attacks = {"attacks": ("natural", "fgsm"), "validation_attack": "fgsm", "batch_size": 4}
    config = replace(config, evaluation=replace(config.evaluation, **attacks))
    torch.manual_seed(0)
    network = load_model("cnn-4-s1", in_channels=1)
    networks = [load_model("cnn-4-s1", in_channels=1) for _ in range(4)]
    for copy in networks:
        copy.load_state_dict(network.state_dict())
    return config, networks


@pytest.mark.parametrize(("num_images", "count"), [(30, 4), (6, 4), (2, 4), (1, 2)])
def test_shards_give_the_counts_of_all_images(run, num_images, count):
    config, networks = run
    config = replace(config, evaluation=replace(config.evaluation, num_images=num_images))
    config = replace(config, data=replace(config.data, validation_size=num_images))
    data, threads = training_data(config, torch.device("cpu")), Threads(count)

    def measured(group: ProcessGroup) -> list:
        console, network = Console(file=io.StringIO()), networks[group.rank]
        results = evaluate_on_test_set(network, config, data, console, "", process_group=group)
        counts = [(result.attack, result.num_images, result.accuracy) for result in results]
        return [counts, evaluate_on_validation_split(network, config, data, process_group=group)]

    alone = measured(ProcessGroup())
    assert [num for _, num, _ in alone[0]] == [num_images] * 2
    assert threads.run(measured) == [alone] * count


def test_a_rank_that_is_done_waits_for_at_most_one_batch_of_the_others(run):
    """Rank 0 has batches of two images, rank 1 one batch of all its images."""
    config, networks = run
    config = replace(config, evaluation=replace(config.evaluation, num_images=40))
    data, threads = training_data(config, torch.device("cpu")), Threads(2)

    def measured(group: ProcessGroup) -> None:
        sampling = replace(data.validation.sampling, batch_size=(2, 100)[group.rank])
        own = replace(data, validation=data.validation.shard(0, 1))
        own.validation.sampling = sampling

        def count(stage: str, num_images: int) -> None:
            threads.num_batches[group.rank] += 1

        evaluate_on_validation_split(networks[group.rank], config, own, process_group=group, progress=count)

    threads.run(measured)
    first, other = zip(*threads.meetings, strict=True)
    assert (first[-1], other[-1]) == (50, 2)
    assert max(later - before for before, later in zip((0, *first), first, strict=False)) == 1


def test_a_rank_that_hangs_after_a_batch_is_reported_with_its_stack_and_one_that_is_done_is_not(run):
    config, networks = run
    data = training_data(config, torch.device("cpu"))
    reports, barked = [], threading.Event()

    def record(seconds: float, stack: str) -> None:
        reports.append(stack)
        if "hang_at_the_second_batch" in stack:  # not a report of a slow machine
            barked.set()

    def hang_at_the_second_batch(stage: str, num_images: int) -> None:
        batches.append(num_images)
        if len(batches) == 2:
            assert barked.wait(LONG_S)

    batches, dog = [], Watchdog(0.05, record)
    group = ProcessGroup(watchdog=dog)
    evaluate_on_validation_split(networks[0], config, data, process_group=group, progress=hang_at_the_second_batch)
    assert len(batches) > 2
    reports.clear()
    time.sleep(0.3)
    dog.stop()
    assert not reports
