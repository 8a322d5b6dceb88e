"""One thread for tiny images on a CPU, restored afterwards, and any number that the user gives."""

import logging

import pytest
import torch

from fastadaad.runtime import torch_settings

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Begins with three threads and no variable of the environment."""
    before = torch.get_num_threads()
    for name in torch_settings.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    torch_settings._say_once.cache_clear()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "device", "variable", "expected"),
    [
        ((8, 8), CPU, None, 1),
        ((16, 16), CPU, None, 1),
        ((17, 16), CPU, None, 3),
        ((32, 32), CPU, None, 3),
        ((8, 8), CUDA, None, 3),
        ((8, 8), CPU, "OMP_NUM_THREADS", 3),
        ((8, 8), CPU, "MKL_NUM_THREADS", 3),
    ],
)
def test_tiny_images_get_one_thread_unless_the_user_gives_a_number(monkeypatch, size, device, variable, expected):
    if variable is not None:
        monkeypatch.setenv(variable, "3")
    with torch_settings.fitting_threads(*size, device):
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_it_is_said_once_with_the_way_to_change_it(caplog):
    caplog.set_level(logging.INFO)
    for _ in range(2):
        with torch_settings.fitting_threads(8, 8, CPU):
            pass
        with torch_settings.fitting_threads(32, 32, CPU):
            pass
    assert caplog.messages == ["images of 8x8 pixels: one thread is faster; OMP_NUM_THREADS=3 uses 3"]


def test_an_error_inside_restores_the_number():
    with pytest.raises(KeyError), torch_settings.fitting_threads(8, 8, CPU):
        raise KeyError
    assert torch.get_num_threads() == 3
