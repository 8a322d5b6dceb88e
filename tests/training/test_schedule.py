"""The learning rate against values worked out by hand and torch's own schedulers."""

import math
from dataclasses import replace

import pytest
import torch

from fastadaad.run_config import OptimConfig
from fastadaad.training.schedule import learning_rate


def torch_rates(scheduler_class, optim: OptimConfig, num_steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=optim.learning_rate)
    scheduler = scheduler_class(optimizer, **options)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(optim: OptimConfig, num_steps: int) -> list[float]:
    return [learning_rate(step / num_steps, optim, 128) for step in range(num_steps)]


def test_the_papers_schedule_drops_at_epochs_100_and_150_of_200():
    optim = OptimConfig(epochs=200, learning_rate=0.1, milestones=(0.5, 0.75))
    steps_per_epoch = 390
    by_epoch = {0: 0.1, 99: 0.1, 100: 0.01, 149: 0.01, 150: 0.001, 199: 0.001}
    for epoch, expected in by_epoch.items():
        for step in (0, steps_per_epoch - 1):
            progress = (epoch * steps_per_epoch + step) / (200 * steps_per_epoch)
            assert learning_rate(progress, optim, 128) == pytest.approx(expected, rel=1e-12)


def test_constant_and_piecewise_without_milestones_stay():
    for schedule in ("constant", "piecewise"):
        assert rates(OptimConfig(epochs=3, learning_rate=0.2, schedule=schedule), 7) == [0.2] * 7


def test_cosine_equals_torchs():
    optim = OptimConfig(epochs=5, learning_rate=0.3, schedule="cosine")
    expected = torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR, optim, 40, T_max=40)
    torch.testing.assert_close(rates(optim, 40), expected, rtol=1e-9, atol=1e-12)


def test_cosine_after_a_warm_up():
    optim = OptimConfig(epochs=10, learning_rate=0.4, schedule="cosine", warmup=0.2)
    by_progress = {0.0: 0.0, 0.1: 0.2, 0.2: 0.4, 0.4: 0.2 * (1 + math.sqrt(0.5)), 0.6: 0.2, 1.0: 0.0}
    for progress, expected in by_progress.items():
        assert learning_rate(progress, optim, 128) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_rises_and_falls_in_straight_lines():
    optim = OptimConfig(epochs=8, learning_rate=0.4, schedule="one-cycle", warmup=0.25)
    expected = [0.0, 0.2, 0.4, 0.4 * 5 / 6, 0.4 * 4 / 6, 0.4 * 3 / 6, 0.4 * 2 / 6, 0.4 * 1 / 6]
    torch.testing.assert_close(rates(optim, 8), expected, rtol=1e-9, atol=1e-12)
    assert learning_rate(1.0, optim, 128) == 0.0


def test_a_warm_up_precedes_any_schedule_and_ends_at_the_full_rate():
    optim = OptimConfig(epochs=4, learning_rate=1.0, schedule="constant", warmup=0.5)
    assert rates(optim, 8) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("batch_size", "factor"), [(128, 1.0), (1024, 8.0), (32, 0.25)])
def test_a_base_batch_size_multiplies_the_whole_schedule(batch_size, factor):
    plain = OptimConfig(epochs=10, learning_rate=0.1, schedule="cosine", warmup=0.2)
    scaled = replace(plain, base_batch_size=128)
    for progress in (0.0, 0.1, 0.2, 0.5, 1.0):
        expected = factor * learning_rate(progress, plain, batch_size)
        assert learning_rate(progress, scaled, batch_size) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(0.2, plain, batch_size) == 0.1  # without a base, no batch size changes the rate
