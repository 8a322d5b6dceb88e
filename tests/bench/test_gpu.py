"""Plan and report of `make bench-gpu`."""

import csv
from pathlib import Path

import pytest

from bench import gpu, step
from bench.gpu import card_of, draw, table, verdict
from bench.gpu_plan import PLAN, minutes, predicted_images_per_s
from bench.networks import PAIRS, Variant, variants_of
from fastadaad import cli, recipes
from fastadaad.config import TeacherPolicy
from fastadaad.config_io import override


def row(images_per_s: float, batch_size: int = 128, **changes: str) -> dict[str, str]:
    columns = {"pair": "cifar", "method": "adaad", "batch_shape": f"{batch_size}x3x32x32", "num_steps": "10"}
    columns |= {"variant": "distiller-graph bf16", "mode": "graph", "policy": "exact", "precision": "bf16"}
    columns |= {"images_per_s": f"{images_per_s}", "ratio_p50": "3", "hardware": "NVIDIA A100-SXM4-80GB, driver 580"}
    return columns | changes


@pytest.mark.slow
def test_the_plan_fits_into_half_an_hour_on_an_a100():
    assert minutes("A100") < 30


def test_the_plan_consists_of_commands_that_parse():
    for run in PLAN:
        options = step._parse(run.arguments) if run.details else cli.parse(run.arguments)
        assert options.precisions == [*run.precisions]
        assert options.batch_sizes == [*run.sizes]
        assert options.rounds == run.rounds
        if not run.details:
            config = override(recipes.get(options.recipe), options.overrides)
            pair = PAIRS[run.pair]
            assert (config.student.name, config.teacher.name, config.device) == (pair.student, pair.teacher, "cuda")
            assert [str(policy) for policy in options.policies] == [*run.policies]


def test_rows_of_the_command_get_the_columns_of_the_table(tmp_path: Path):
    run = PLAN[2]
    likely = predicted_images_per_s("A100", row(1, pair="paper"))["likely"]
    common = {"method": "adaad", "num_steps": "10", "batch_size": "128", "precision": "bf16", "mode": "graph"}
    common |= {"hardware": "NVIDIA A100-SXM4-80GB, driver 580", "plain_images_per_s": "20", "speedup_p50": "3"}
    cells = [{"policy": "exact", "images_per_s": likely}, {"policy": "refreshed(every=5)", "images_per_s": ""}]
    (tmp_path / run.name).mkdir()
    with open(tmp_path / run.name / "benchmark.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*common, *cells[0]])
        writer.writeheader()
        writer.writerows(common | found for found in cells)
    plain, ours = gpu.measured_rows(tmp_path, run)  # the policy did not fit into memory
    assert (plain["variant"], plain["images_per_s"], plain["ratio_p50"]) == ("reference", "20", "1.0")
    assert (ours["variant"], ours["ratio_p50"]) == ("distiller-graph", "3")
    assert table([ours]).endswith("| inside |")


def test_a_policy_runs_in_the_last_precision():
    variants = variants_of("adaad", ["graph"], [TeacherPolicy.parse("refreshed(every=5)")], ["fp32", "bf16"])
    assert [*variants][-1] == Variant(mode="graph", policy=TeacherPolicy.parse("refreshed(every=5)"), precision="bf16")


@pytest.mark.parametrize(
    ("measured", "words"), [(100, "inside"), (60, "inside"), (59, "wrong: 0.59"), (250, "wrong: 2.50")]
)
def test_a_measurement_outside_the_error_bars_proves_the_model_wrong(measured, words):
    assert verdict(measured, {"worst": 60, "likely": 100, "best": 140}).startswith(words)


def test_cards_by_the_name_of_the_hardware():
    assert card_of("NVIDIA A100-SXM4-80GB, driver 580") == "A100"
    assert card_of("NVIDIA H200, driver 580") == "H200"
    assert card_of("NVIDIA GeForce RTX 3060, driver 580") is None


def test_a_larger_batch_trains_more_images_per_second_by_the_model():
    small, large = (predicted_images_per_s("A100", row(1, size))["likely"] for size in (64, 512))
    assert small < large


def test_the_table_compares_only_what_the_model_knows():
    likely = predicted_images_per_s("A100", row(1))["likely"]
    rows = [row(likely), row(10 * likely), row(1, mode="eager"), row(1, hardware="NVIDIA GeForce RTX 3060, driver 580")]
    verdicts = [line.split("|")[-2].strip() for line in table(rows).splitlines()[2:]]
    assert verdicts == ["inside", "wrong: 10.00 times the prediction", "", ""]


@pytest.mark.slow
def test_the_report_has_tables_and_a_picture(tmp_path: Path):
    added = {"plain_images_per_s": "300", "speedup_p50": "3"}
    rows = [row(2000 * size**0.1, size) | {"batch_size": f"{size}"} | added for size in (128, 256)]
    (tmp_path / "batch-paper").mkdir()
    with open(tmp_path / "batch-paper" / "benchmark.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    gpu.main(["--draw", "--output", str(tmp_path)])
    assert "## batch-paper" in (tmp_path / "tables.md").read_text()
    assert (tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_has_a_band_for_each_predicted_variant(tmp_path: Path, monkeypatch):
    figures = []
    new_figure = gpu.new_figure
    monkeypatch.setattr(gpu, "new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1])
    draw(tmp_path / "step.png", [row(1000), row(1200, 256), row(300, variant="reference", mode="reference")])
    (axes,) = figures[0].axes
    assert len(axes.collections) == 1
    assert len(axes.lines) == 2
