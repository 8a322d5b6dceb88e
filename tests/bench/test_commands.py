"""Commands of `python -m bench`."""

import csv

import pytest

from bench import __main__ as command_line
from bench import evaluate, ops, roofline, run, speed, step, time_to_accuracy
from bench.flops import StepCost
from bench.pages import rewritten, rows_of
from bench.roofline import Device, best_images_per_s
from fastadaad.recipes import RECIPES


@pytest.mark.parametrize("name", command_line.BENCHMARKS)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main([name, "--help"])
    assert exit_.value.code == 0
    assert f"python -m bench {name}" in capsys.readouterr().out


def test_an_unknown_name_lists_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["sped"])
    assert exit_.value.code == 2
    assert all(name in capsys.readouterr().err for name in ["roofline"])


def test_best_is_the_smaller_of_compute_and_memory():
    device = Device(tflops={"fp32": 2.0}, gb_per_s=100.0)
    assert best_images_per_s(StepCost(flops=4e9, num_bytes=1e6), device, "fp32") == pytest.approx(500)
    assert best_images_per_s(StepCost(flops=4e9, num_bytes=1e9), device, "fp32") == pytest.approx(100)


@pytest.mark.slow
def test_roofline_of_the_paper_recipe(tmp_path):
    rows = {(row["policy"], row["device"], row["precision"]): row for row in roofline.rows_of("cifar10-rn18")}
    exact = rows["exact", "A100-SXM-80GB", "tf32"]
    # ResNet-18: 10 steps forward and backward, one pass for statistics, three for the update; the teacher: 21 passes.
    assert exact["gflop_per_image"] == pytest.approx(24 * 1.111 + 21 * 53.16, rel=1e-3)
    assert exact["best_images_per_s"] == pytest.approx(156e12 / (exact["gflop_per_image"] * 1e9), rel=1e-2)
    assert {row["kind"] for row in rows.values()} == {"computed"}
    linearized = rows["linearized(top=3,every=10)", "A100-SXM-80GB", "tf32"]
    assert linearized["flops_gain"] == pytest.approx((24 * 1.111 + 21 * 53.16) / (24 * 1.111 + 5 * 53.16), rel=1e-2)


@pytest.mark.slow
def test_roofline_covers_every_recipe_and_overwrites_its_file(tmp_path):
    path = tmp_path / "roofline.csv"
    roofline.main(["--output", str(path)])
    first = path.read_text()
    roofline.main(["--output", str(path)])
    assert path.read_text() == first
    with open(path, newline="") as file:
        assert {row["recipe"] for row in csv.DictReader(file)} == RECIPES.keys()


@pytest.mark.slow
def test_step_measures_and_writes_rows(tmp_path):
    path = tmp_path / "step.csv"
    words = ["--pair", "demo", "--modes", "eager", "--policies", "refreshed(every=2)", "--num-steps", "2"]
    words += ["--rounds", "1", "--no-details", "--batch-sizes", "2,4", "--device", "cpu", "--output", str(path)]
    step.main([*words, "--rewrite"])
    step.main([*words, "--rewrite"])
    rows = rows_of(path)
    assert [(row["batch_shape"], row["variant"]) for row in rows] == [
        (f"{size}x1x8x8", variant)
        for size in (2, 4)
        for variant in ("reference", "distiller-eager", "distiller-eager refreshed(every=2)")
    ]
    for row in rows:
        batch_size = int(row["batch_shape"].partition("x")[0])
        assert float(row["images_per_s"]) == pytest.approx(1e3 * batch_size / float(row["p50_ms"]), rel=1e-2)
        gflop_per_s = float(row["gflop"]) / float(row["p50_ms"]) * 1e3
        assert float(row["gflop_per_s"]) == pytest.approx(gflop_per_s, rel=0.1, abs=0.02)
        assert row["n"] == "1"
    assert [float(row["ratio_p50"]) for row in rows if row["variant"] == "reference"] == [1.0, 1.0]


def test_a_teacher_alone_gets_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["evaluation.num_images=40", "evaluation.attacks=[natural,fgsm]", "--output", "rows.csv"]
    run.main(["teacher", "demo", *words])
    with open("rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["student"], row["method"], row["attack"]) for row in rows] == [
        ("cnn-72-s1", "teacher", "natural"),
        ("cnn-72-s1", "teacher", "fgsm"),
    ]
    assert float(rows[0]["accuracy"]) > 0.9


@pytest.mark.slow
def test_evaluations_of_the_same_images_are_timed(tmp_path):
    path = tmp_path / "evaluate.csv"
    words = ["--networks", "cnn-4", "--modes", "eager", "--batch-size", "50", "--num-steps", "3", "--rounds", "1"]
    evaluate.main([*words, "--natural-accuracy", "0.8", "--device", "cpu", "--output", str(path)])
    rows = rows_of(path)
    assert [row["variant"] for row in rows] == ["plain loop", "foolbox", "evaluate-eager"]
    accuracies = [float(row["robust_accuracy"]) for row in rows]
    assert max(accuracies) <= 0.8
    assert max(accuracies) - min(accuracies) <= 0.06  # three images: each has its own random starts
    for row in rows:
        assert float(row["images_per_s"]) == pytest.approx(1e3 * 50 / float(row["p50_ms"]), rel=1e-2)
    assert float(rows[0]["ratio_p50"]) == float(rows[1]["times_foolbox_p50"]) == 1


def test_bytes_of_an_operation_count_its_arguments_and_results():
    cases = {(case.op, case.shape): case for case in ops.pixel_cases(ops.torch.device("cpu"))}
    pixels = 128 * 3 * 32 * 32
    assert cases["linf_step_", "128x3x32x32"].num_bytes == 4 * 4 * pixels  # three read, one written
    assert cases["random_start_", "128x3x32x32"].num_bytes == 3 * 4 * pixels
    assert cases["crop_flip", "512x3x32x32"].num_bytes == 4 * 5 * pixels + 512 * (3 * 8 + 1)
    assert ("l2_step_", "512x3x32x32") in cases


def test_the_step_with_precomputed_bounds_equals_the_reference():
    torch = ops.torch
    x_natural = torch.rand(4, 3, 8, 8)
    x_adv, grad_x = (x_natural + 0.03).clamp(0, 1), torch.randn_like(x_natural)
    case = ops.Case("linf_step_", "", (x_adv.clone(), x_natural, grad_x, 0.02, 0.03, 0.0, 1.0), 0)
    ops.linf_step_between_bounds(case)()
    expected = x_adv.clone()
    torch.ops.fastadaad.linf_step_(expected, *case.arguments[1:])
    torch.testing.assert_close(case.arguments[0], expected, rtol=0, atol=1e-6)


def test_time_to_accuracy_is_taken_from_the_first_epoch_that_reaches_it():
    metrics = [
        {"epoch": 1.0, "robust_accuracy": 0.2, "images_per_s": 10.0, "seconds": 5.0},
        {"epoch": 2.0, "images_per_s": 11.0, "seconds": 10.0},
        {"epoch": 3.0, "robust_accuracy": 0.6, "images_per_s": 12.0, "seconds": 15.0},
        {"epoch": 4.0, "robust_accuracy": 0.5, "images_per_s": 13.0, "seconds": 20.0},
    ]
    row = time_to_accuracy.result_row(metrics, 0.55)
    assert (row["seconds"], row["epoch"], row["best_robust_accuracy"], row["total_seconds"]) == (15.0, 3, 0.6, 20.0)
    missed = time_to_accuracy.result_row(metrics, 0.7)
    assert (missed["seconds"], missed["epoch"]) == ("", "")


def test_a_wrong_setting_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        command_line.main(["cifar10", "data.nosuch=1", "--trained"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m bench cifar10: ")
    assert "nosuch" in line


@pytest.mark.slow
def test_the_speed_command_changes_only_the_text_between_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed:begin -->\nold\n<!-- speed:end -->\nafter\n")
    roofline.main(["--output", str(tmp_path / "roofline.csv")])
    speed.main(["--page", str(page), "--results", str(tmp_path)])
    once = page.read_text()
    speed.main(["--page", str(page), "--results", str(tmp_path)])
    assert page.read_text() == once
    assert once.startswith("before\n<!-- speed:begin -->\n\nComputed")
    assert once.endswith("<!-- speed:end -->\nafter\n")
    assert "old" not in once
    assert "| `exact` | 1143 | 1.0 |" in once
    with pytest.raises(ValueError, match="put the two lines"):
        rewritten("no markers", "", "speed")
