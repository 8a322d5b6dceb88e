"""Garbage collection of a training: at log points and ends of epochs, with the caller's settings restored."""

import gc
import io
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from rich.console import Console
from tiny_runs import tiny_run

from fastadaad.runtime.host_memory import GarbageCollection
from fastadaad.training.trainer import Trainer

STEPS_PER_EPOCH, LOG_EVERY = 4, 3  # values of tiny_run


@contextmanager
def eager_collection() -> Iterator[None]:
    """Automatic collections as often as every 20 new objects."""
    before = gc.get_threshold()
    gc.set_threshold(20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def noted_collections(events: list[str]) -> Iterator[None]:
    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            events.append("collection")

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)


def run_with(folder, act) -> Trainer:
    """A run that calls act(step) before each of its steps."""
    run = Trainer(tiny_run(), folder, Console(file=io.StringIO()))
    take_step = run.distiller.step

    def step_after_act(*arguments, **options):
        act(run.state.step)
        return take_step(*arguments, **options)

    run.distiller.step = step_after_act
    return run


@pytest.mark.slow
def test_collections_come_after_the_first_step_at_log_points_and_at_ends_of_epochs(tmp_path):
    events = []
    run = run_with(tmp_path, lambda step: events.append(f"step {step + 1}"))
    validate = run._validation

    def noted_validation(*arguments):
        events.append("epoch ends")
        return validate(*arguments)

    run._validation = noted_validation
    with eager_collection(), noted_collections(events):
        run.train()
    text = " ".join(events)
    # Between the epochs, in the evaluation, collection is automatic again.
    first, _, rest = text.partition("epoch ends")
    second, _, _ = rest[rest.index("step 5") :].partition("epoch ends")
    assert first[first.index("step 1") :].startswith("step 1 collection step 2 step 3 collection step 4 collection")
    assert second.startswith("step 5 step 6 collection step 7 step 8 collection")
    assert rest.count("collection") > 10  # the evaluation alone


class Cycle:
    """Object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def test_cyclic_garbage_of_a_step_is_collected_at_the_next_log_point(tmp_path):
    made: dict[int, weakref.ref] = {}
    alive_before: dict[int, list[int]] = {}

    def act(step):
        alive_before[step + 1] = [number for number, cycle in made.items() if cycle() is not None]
        made[step + 1] = weakref.ref(Cycle())

    run_with(tmp_path, act).train()
    # Collections: after step 1 (the first), 3 and 6 (logged), 4 and 8 (ends of epochs).
    assert alive_before == {1: [], 2: [], 3: [2], 4: [], 5: [], 6: [5], 7: [], 8: [7]}
    assert all(cycle() is None for cycle in made.values())


class StepError(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("is_enabled", [False, True])
def test_the_callers_settings_are_restored(tmp_path, is_enabled, fails):
    inside = []

    def act(step):
        inside.append((gc.isenabled(), gc.get_freeze_count() > 0))
        if fails and step == 2:
            raise StepError

    run = run_with(tmp_path, act)
    was_enabled = gc.isenabled()
    (gc.enable if is_enabled else gc.disable)()
    try:
        with pytest.raises(StepError) if fails else noted_collections([]):
            run.train()
        assert gc.isenabled() == is_enabled
        assert gc.get_freeze_count() == 0
        assert inside[:3] == [(False, False), (False, True), (False, True)]
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_objects_that_the_caller_has_frozen_stay_frozen():
    gc.freeze()
    try:
        num_frozen = gc.get_freeze_count()
        with GarbageCollection() as garbage, garbage.held():
            kept = [[] for _ in range(1000)]
            garbage.after_step(is_due=False)
        assert 0 < num_frozen - 100 < gc.get_freeze_count() < num_frozen + len(kept)
    finally:
        gc.unfreeze()
