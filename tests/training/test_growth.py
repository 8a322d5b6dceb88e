"""Steps, searches and evaluations leave no objects, threads or open files behind."""

import gc
import os
import threading
from collections.abc import Callable

import pytest
import torch
from networks import images_and_labels, student_and_teacher

from fastadaad import Distiller, InnerConfig, InnerMaximizer, ThreatModel
from fastadaad.evaluation import evaluate

THREAT_MODEL = ThreatModel(epsilon=0.1)
INNER = InnerConfig(threat_model=THREAT_MODEL, step_size=0.05, num_steps=1)


def steps() -> Callable[[], object]:
    (student, teacher), batch = student_and_teacher(), images_and_labels(4)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    distiller = Distiller(student=student, teacher=teacher, optimizer=optimizer, method="adaad", inner=INNER)
    return lambda: distiller.step(*batch)


def searches() -> Callable[[], object]:
    networks, (x_natural, _) = student_and_teacher(), images_and_labels(4)
    return lambda: InnerMaximizer(*networks, inner=INNER)(x_natural)


def evaluations() -> Callable[[], object]:
    (student, _), images = student_and_teacher(), images_and_labels(4)
    return lambda: evaluate(student, images, ["natural", "pgd1"], threat_model=THREAT_MODEL)


def left_behind() -> tuple[int, int, int]:
    gc.collect()
    return len(gc.get_objects()), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize("work", [steps, searches, evaluations])
def test_work_leaves_nothing_behind(work):
    do = work()
    for _ in range(5):  # caches fill
        do()
    before = left_behind()
    for _ in range(40):
        do()
    after = left_behind()
    assert after[0] - before[0] < 20  # fewer than one object per two calls
    assert after[1:] == before[1:]
