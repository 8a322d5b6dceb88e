"""`fastadaad benchmark`: both sides of a cell, its figures, its files, and what it refuses."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_run

from fastadaad import cli, recipes
from fastadaad.cli.benchmarks import measuring
from fastadaad.cli.benchmarks.grid import Cell, Choices, cells_of, comparable
from fastadaad.cli.benchmarks.measuring import Measuring, Remaining
from fastadaad.cli.benchmarks.programs import arithmetic, fast_program, plain_program
from fastadaad.config import TeacherPolicy
from fastadaad.run_config import OptimConfig, RunConfig, TeacherConfig
from fastadaad.training.plain_program import REFERENCES

CPU = torch.device("cpu")
EXACT, REFRESHED = TeacherPolicy(), TeacherPolicy.parse("refreshed(every=2)")


def tiny(method: str = "adaad") -> RunConfig:
    """Networks of a few hundred weights, K = 2; the teacher has no file."""
    return tiny_run(method=method, teacher=TeacherConfig(name="cnn-6-s1"), device="cpu")


def cell(**changes) -> Cell:
    return replace(Cell(batch_size=6, precision="fp32", policy=EXACT, mode="eager"), **changes)


@pytest.fixture(autouse=True)
def tiny_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(recipes.RECIPES, "tiny", tiny)


def benchmark(words: str) -> int:
    return cli.main(["benchmark", *words.split()])


def rows_in(folder: Path) -> list[dict[str, str]]:
    with open(folder / "benchmark.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", ["adaad", "rslad", "pgd-at"])
def test_both_sides_train_the_same_student(method):
    config, _ = comparable(tiny(method))
    fast, plain = (make(config, cell(), CPU, rate=0.1) for make in (fast_program, plain_program))
    before = [parameter.clone() for parameter in plain.student.parameters()]
    for seed in range(2):
        torch.manual_seed(seed)
        loss = fast.step()
        torch.manual_seed(seed)
        torch.testing.assert_close(plain.step(), loss, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(plain.student.state_dict(), fast.student.state_dict(), rtol=1e-4, atol=1e-6)
    moved = [(after - old).abs().max() for after, old in zip(plain.student.parameters(), before, strict=True)]
    assert max(moved) > 1e-4  # otherwise the comparison would prove nothing


def test_the_plain_program_computes_in_the_cells_precision():
    weight, x = torch.rand(3, 3), torch.rand(2, 3)
    products = {}
    for precision in ("fp32", "bf16"):
        with arithmetic(precision, CPU):
            products[precision] = x @ weight
    assert products["fp32"].dtype == torch.float32
    assert products["bf16"].dtype == torch.bfloat16


def test_settings_of_the_plain_program_are_named():
    config, notes = comparable(
        replace(tiny(), method_options={"clean_statistics": False}, optim=OptimConfig(epochs=1, ema_decay=0.9))
    )
    assert config.method_options == REFERENCES["adaad"].options
    assert config.optim.ema_decay == 0
    (note,) = notes
    assert "clean_statistics=default (recipe: false)" in note
    assert "optim.ema_decay=0.0 (recipe: 0.9)" in note
    assert comparable(config) == (config, [])


def test_every_combination_is_a_cell():
    choices = Choices(
        batch_sizes=[4, 8], precisions=["fp32", "bf16"], policies=[EXACT, REFRESHED], modes=["eager", "compiled"]
    )
    cells = cells_of(tiny(), choices, CPU)
    assert len(set(cells)) == 16
    assert cells[:3] == [
        cell(batch_size=4), cell(batch_size=4, mode="compiled"), cell(batch_size=4, policy=REFRESHED)
    ]  # fmt: skip


def test_the_recipes_own_settings_are_the_defaults():
    config = replace(tiny(), mode="compiled", teacher=TeacherConfig(name="cnn-6-s1", policy=REFRESHED))
    assert cells_of(config, Choices(), CPU) == [cell(batch_size=64, policy=REFRESHED, mode="compiled")]
    assert cells_of(tiny(), Choices(), CPU) == [cell(batch_size=64)]


@pytest.mark.slow
def test_files_and_table_hold_the_same_figures(capsys):
    assert benchmark("tiny --batch-sizes 4,6 --policies refreshed(every=2) --rounds 1 --output out") == 0
    printed, folder = capsys.readouterr().out, Path("out")
    rows = rows_in(folder)
    assert [(row["batch_size"], row["policy"]) for row in rows] == [(size, str(REFRESHED)) for size in ("4", "6")]
    lines = (folder / "benchmark.md").read_text().splitlines()
    table = [[text.strip() for text in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    for row, shown in zip(rows, table[2:], strict=True):
        size, p50, plain = int(row["batch_size"]), float(row["p50_ms"]), float(row["plain_p50_ms"])
        assert float(row["images_per_s"]) == pytest.approx(1e3 * size / p50, rel=1e-3)
        assert float(row["plain_images_per_s"]) == pytest.approx(1e3 * size / plain, rel=1e-3)
        assert float(row["speedup_p50"]) == pytest.approx(plain / p50, rel=1e-3)  # of the one round
        assert float(row["peak_mib"]) > 0
        assert (row["of_peak"], row["card"]) == ("", "")
        assert row["hardware"]
        assert row["torch"] == torch.__version__
        cells = dict(zip(table[0], shown, strict=True))
        assert float(cells["images/s"].replace(",", "")) == pytest.approx(float(row["images_per_s"]), abs=0.051)
        assert cells["speedup (p20 to p80)"].startswith(f"{float(row['speedup_p50']):.2f} (")
    assert "of the peak" not in table[0]  # on a CPU the share is left out
    content = json.loads((folder / "benchmark.json").read_text())
    assert [str(found["images_per_s"]) for found in content["cells"]] == [row["images_per_s"] for row in rows]
    assert content["cells"][0]["of_peak"] is None
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert "2 cells, about" in printed
    assert printed.index("folder: out") < printed.index("1/2  batch 4, fp32, refreshed(every=2), eager: ")
    assert re.search(r"1/2 .* times the plain loop; about .* left\n", printed)


@pytest.mark.slow
def test_an_interruption_keeps_the_finished_cells(monkeypatch, capsys):
    measured = Measuring.row

    def row(self: Measuring, at: Cell):
        if at.batch_size == 6:
            raise KeyboardInterrupt
        return measured(self, at)

    monkeypatch.setattr(Measuring, "row", row)
    assert benchmark("tiny --batch-sizes 4,6 --rounds 1 --output out") == 130
    assert [found["batch_size"] for found in rows_in(Path("out"))] == ["4"]
    assert Path("out/benchmark.png").exists()
    assert "what was saved so far is complete" in capsys.readouterr().err
    assert benchmark("tiny --batch-sizes 6 --rounds 1 --output none") == 130
    assert not Path("none").exists()


@pytest.mark.parametrize("side", ["fast", "plain"])
def test_a_side_that_does_not_fit_is_marked(monkeypatch, capsys, side):
    def too_large(*arguments):
        raise torch.cuda.OutOfMemoryError("no room")

    config, _ = comparable(tiny())
    meter = Measuring(config=config, device=CPU, rounds=1)
    remaining = Remaining(meter, [cell()])
    monkeypatch.setattr(measuring, f"{side}_program", too_large)
    row = remaining.measured(cell())
    statuses = {"fast": row["status"], "plain": row["plain_status"]}
    assert statuses == {"fast": "measured", "plain": "measured"} | {side: "out of memory"}
    lost, kept = ("images_per_s", "plain_images_per_s")[:: 1 if side == "fast" else -1]
    assert row[lost] == row["speedup_p50"] == ""
    assert row[kept] > 0


def test_a_step_that_fits_only_alone_is_measured_without_the_plain_one(monkeypatch):
    calls = []

    def fits_alone(*arguments):
        calls.append(arguments)
        if len(calls) == 1:  # beside the plain program
            raise torch.cuda.OutOfMemoryError("no room")
        return fast_program(*arguments)

    config, _ = comparable(tiny())
    monkeypatch.setattr(measuring, "fast_program", fits_alone)
    row = Measuring(config=config, device=CPU, rounds=1).row(cell())
    assert (row["status"], row["plain_status"]) == ("measured", "no room beside ours")
    assert row["images_per_s"] > 0
    assert row["plain_images_per_s"] == row["speedup_p50"] == ""


def test_the_estimate_follows_the_finished_cells(monkeypatch):
    config, _ = comparable(tiny())
    meter = Measuring(config=config, device=CPU, rounds=1)
    monkeypatch.setattr(Measuring, "estimated_seconds", lambda self, at: float(at.batch_size))
    monkeypatch.setattr(Measuring, "row", lambda self, at: {})
    clock = iter([0.0, 20.0])
    remaining = Remaining(meter, [cell(batch_size=10), cell(batch_size=15)])
    assert remaining.first_estimate.startswith("about 25 s:")
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    remaining.measured(cell(batch_size=10))  # takes twice as long as estimated
    assert remaining.describe() == "; about 30 s left"


@pytest.mark.slow
def test_without_an_output_folder_a_new_one_in_runs_is_used():
    assert benchmark("tiny --batch-sizes 2 --rounds 1") == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("_benchmark_tiny")
    assert len(rows_in(folder)) == 1
