"""The line of each epoch, and lines within long epochs where no progress bar is seen."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from tiny_runs import printed_lines, tiny_run

from fastadaad.runtime.text import duration
from fastadaad.training import epoch_lines
from fastadaad.training.epoch_lines import EpochLines
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

ROW = {
    "epoch": 12,
    "train_loss": 0.41234,
    "natural_accuracy": 0.812,
    "robust_accuracy": 0.513,
    "policy_kl_share": None,
    "images_per_s": 1240.0,
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(epoch_lines, "time", clock)
    return clock


def test_the_line_of_an_epoch(clock):
    lines = EpochLines(200, 0.0)
    clock.now += 720
    assert lines.of_epoch(ROW, (10, 0.519), 0.06) == (
        "epoch 12/200  loss 0.4123  natural 81.2  robust 51.3 (best 51.9 @10)  1,240 images/s  3 h 8 min left"
    )


def test_what_was_not_measured_is_left_out(clock):
    row = ROW | {"natural_accuracy": None, "robust_accuracy": None, "policy_kl_share": 0.934}
    assert EpochLines(12, 0.5).of_epoch(row, (0, -1.0), 1.0) == (
        "epoch 12/12  loss 0.4123  policy 93% of exact kl  1,240 images/s"
    )


def test_the_time_left_is_that_of_this_start(clock):
    lines = EpochLines(12, 0.5)
    clock.now += 100
    assert lines.of_epoch(ROW, (1, 0.5), 0.75).endswith("2 min left")  # a quarter took 100 s


def test_lines_within_an_epoch_come_every_three_minutes(clock):
    lines = EpochLines(12, 0.0)
    clock.now += 179
    assert lines.within_epoch(["epoch 1/12"], 5.0, 0.01) is None
    clock.now += 1
    assert lines.within_epoch(["epoch 1/12", "loss 2"], 5.0, 0.01) == "epoch 1/12  loss 2  5 images/s  4 h 57 min left"
    clock.now += 179
    assert lines.within_epoch(["epoch 1/12"], 5.0, 0.02) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "1 h 0 min"), (11_400, "3 h 10 min"), (190_800, "2 d 5 h")],
)
def test_a_duration_has_two_units(seconds, text):
    assert duration(seconds) == text


def test_each_epoch_of_a_run_prints_its_metrics(tmp_path):
    lines = [line for line in printed_lines(tiny_run(), tmp_path) if re.match(r"epoch \d/2  ", line)]
    rows = read_metrics(tmp_path)
    assert len(lines) == len(rows) == 2
    best = 0.0
    for line, row in zip(lines, rows, strict=True):
        best = max(best, row["robust_accuracy"])
        start = (
            f"epoch {row['epoch']:.0f}/2  loss {row['train_loss']:.4f}  natural {100 * row['natural_accuracy']:.1f}  "
        )
        assert line.startswith(f"{start}robust {100 * row['robust_accuracy']:.1f} (best {100 * best:.1f} @")
    assert lines[0].endswith(" s left")
    assert lines[1].endswith("images/s")


def test_a_terminal_shows_the_bar_and_no_lines_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_lines, "HEARTBEAT_S", 0.0)
    config = replace(tiny_run(), log_every=1)
    printed = {}
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=200, force_terminal=is_terminal)
        Trainer(config, tmp_path / str(is_terminal), console).train()
        printed[is_terminal] = (tmp_path / str(is_terminal) / "log.txt").read_text()
    num_lines = {key: len(re.findall(r"epoch \d/2  loss", text)) for key, text in printed.items()}
    assert num_lines == {True: 2, False: 2 + 8}  # two epochs of four steps
