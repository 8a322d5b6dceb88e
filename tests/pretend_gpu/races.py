"""torch's sanitizer of races between streams, on the pretend GPU: it finds a planted one, and none in our step.

It cannot be taken out of a process again, so test_rules.py runs these tests in one of their own.
"""

from collections.abc import Iterator

import pytest
import torch
from networks import images_and_labels, student_and_teacher
from torch.cuda._sanitizer import CUDASanitizer, CUDASanitizerErrors, UnsynchronizedAccessError

from fastadaad import Distiller
from fastadaad.runtime.cuda_graph import run_on_two_streams

DEVICE = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def sanitizer() -> Iterator[CUDASanitizer]:
    torch.zeros(1, device=DEVICE)  # starts the CUDA runtime
    watch = CUDASanitizer()
    watch.enable()
    yield watch
    watch.disable()


def test_a_missing_wait_is_found(sanitizer):
    x = torch.ones(1000, device=DEVICE)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), pytest.raises(CUDASanitizerErrors) as caught:
        x.mul_(2)  # without waiting for the stream that fills x
    assert isinstance(caught.value.errors[0], UnsynchronizedAccessError)


def test_two_streams_have_no_race(sanitizer):
    x = torch.ones(1000, device=DEVICE)
    doubled, halved = run_on_two_streams(DEVICE, lambda: x * 2, lambda: x / 2)
    assert (doubled - halved).sum().item() == 1500


def test_an_eager_training_step_on_two_streams_has_no_race(sanitizer):
    student, teacher = (network.to(DEVICE) for network in student_and_teacher())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, fused=True)
    distiller = Distiller(
        student, teacher, inner={"num_steps": 2}, optimizer=optimizer, mode="eager", layout="contiguous"
    )
    x_natural, labels = (tensor.to(DEVICE) for tensor in images_and_labels(8))
    for _ in range(2):
        assert distiller.step(x_natural, labels).loss.isfinite()
