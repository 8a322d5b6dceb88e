"""The search for the largest batch with fake memory, and the estimate on this machine."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_runs import tiny_run

from fastadaad import cli
from fastadaad.cli import max_batch
from fastadaad.cli.max_batch import Trial, available_memory, extrapolated_batch, largest_batch, print_max_batch
from fastadaad.data import load_dataset
from fastadaad.run_config import DataConfig, OptimConfig
from fastadaad.training.synthetic import IMAGES


@pytest.mark.parametrize("limit", [8, 100, 1000, 5000])
@pytest.mark.parametrize("capacity", [0, 7, 8, 15, 16, 100, 127, 128, 129, 136, 1000, 4999, 10**6])
def test_the_search_finds_the_largest_multiple_of_eight_that_fits(capacity, limit):
    tried = []

    def fits(batch_size: int) -> bool:
        tried.append(batch_size)
        return batch_size <= capacity

    assert largest_batch(fits, limit) == min(capacity, limit) // 8 * 8
    assert all(size % 8 == 0 and 0 < size <= limit for size in tried)
    assert len(tried) == len(set(tried)) <= 22  # doubling and bisection, no batch twice


def test_an_estimate_extrapolates_memory_linearly():
    smaller = Trial(batch_size=64, peak_bytes=1000 + 64 * 10, images_per_s=1.0)
    larger = Trial(batch_size=128, peak_bytes=1000 + 128 * 10, images_per_s=1.0)
    assert extrapolated_batch(smaller, larger, memory=1000 + 400 * 10 + 79, limit=5000) == 400
    assert extrapolated_batch(smaller, larger, memory=1000 + 407 * 10, limit=5000) == 400
    assert extrapolated_batch(smaller, larger, memory=10**9, limit=1437) == 1432
    assert extrapolated_batch(smaller, larger, memory=500, limit=5000) == 0


def printed(config) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    return print_max_batch(config, console), console.file.getvalue()


def pretend_peaks(monkeypatch, bytes_per_image: int, base: int = 0) -> list[int]:
    """Replaces steps by calls that take no time and use fake memory; returns the batch sizes tried."""
    sizes: list[int] = []

    def time_steps(config, device, batch_size) -> float:
        sizes.append(batch_size)
        return 10.0 * batch_size

    monkeypatch.setattr(max_batch, "time_steps", time_steps)
    monkeypatch.setattr(max_batch, "_peak_of_process", lambda: base + max(sizes) * bytes_per_image)
    return sizes


def test_on_the_cpu_batches_grow_until_memory_does_and_the_result_is_an_estimate(monkeypatch):
    megabyte = 2**20
    sizes = pretend_peaks(monkeypatch, 3 * megabyte, base=300 * megabyte)
    monkeypatch.setattr(max_batch, "available_memory", lambda: (300 + 3 * 700 + 1) * megabyte)
    data = DataConfig(name="fashion-mnist", batch_size=64)
    largest, text = printed(tiny_run(data=data, device="cpu"))
    assert largest == 696  # the multiple of 8 below 700
    assert sizes == [8, 16, 32, 64, 128]  # from 32 images on, each doubling clearly raises memory
    assert "largest batch: 696, an estimate" in text
    assert "0.67" in text  # GiB of 128 images
    assert "1280.0" in text  # images/s


def test_the_largest_batch_is_all_images_if_they_fit(monkeypatch):
    pretend_peaks(monkeypatch, 1)
    largest, text = printed(tiny_run(device="cpu"))  # 256 digits
    assert largest == 256
    assert "(all images to train on)" in text


@pytest.mark.slow
def test_on_cuda_a_batch_that_does_not_fit_is_tried_and_shown(monkeypatch):
    """Replaces the driver: checks the errors that count as out of memory, and the table."""

    def time_steps(config, device, batch_size) -> float:
        if batch_size > 100:
            raise torch.cuda.OutOfMemoryError("no room")
        return 5.0

    monkeypatch.setattr(max_batch, "time_steps", time_steps)
    monkeypatch.setattr(max_batch, "resolve_device", lambda name: torch.device("cuda"))
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**31)
    largest, text = printed(tiny_run())
    assert largest == 96
    assert "2.00" in text
    assert "does not fit" in text
    assert "estimate" not in text


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 3}])
def test_a_trial_runs_real_steps(settings):
    optim = OptimConfig(epochs=1, **settings)
    assert max_batch.time_steps(tiny_run(optim=optim), torch.device("cpu"), 8) > 0


def test_the_table_of_image_sizes_agrees_with_a_data_set():
    dataset, kind = load_dataset("digits"), IMAGES["digits"]
    assert dataset.train_images.shape == (kind.num_images, kind.size, kind.size, kind.channels)
    assert len(dataset.class_names) == kind.num_classes


def test_doctor_takes_a_recipe_and_overrides(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(max_batch, "print_max_batch", lambda config, console: given.append(config))
    assert cli.main(["doctor", "--max-batch", "demo", "optim.micro_batch=16", "device=cpu"]) == 0
    assert (given[0].recipe, given[0].optim.micro_batch, given[0].device) == ("demo", 16, "cpu")
    assert cli.main(["doctor", "optim.micro_batch=16"]) == 2
    assert "name one with --max-batch RECIPE" in capsys.readouterr().err


def test_an_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="'svhn' is not one of digits"):
        printed(tiny_run(data=DataConfig(name="svhn")))


def test_available_memory_is_between_used_and_total_memory():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert max_batch._peak_of_process() / 4 < available_memory() <= total
