"""Studies of many students: their grids and candidates, and `bench border`, `tune` and `cifar10` up to their rows."""

import csv
from collections import Counter

import pytest
from small_runs import SMALL

from bench import border, cifar10, tune
from bench.pages import Row
from fastadaad import methods, recipes


def row(method: str, accuracy: float, *, student: str = "rescnn-8", images: str = "500", seed: str = "0"):
    return {"student": student, "train_images": images, "seed": seed, "method": method, "natural": str(accuracy)}


def test_a_gain_is_the_mean_difference_of_the_seeds_that_have_both_methods():
    rows = [row("adaad", 0.50), row("pgd-at", 0.47), row("adaad", 0.60, seed="1"), row("pgd-at", 0.55, seed="1")]
    rows += [row("adaad", 0.90, seed="2"), row("adaad", 0.7, images="2000"), row("pgd-at", 0.8, images="2000")]
    ((student, by_count),) = border.gains(rows, "natural").items()
    assert student == "rescnn-8"
    assert by_count == pytest.approx({500: 4.0, 2000: -10.0})


def test_every_student_of_the_border_sees_as_many_images():
    cells = [*border.cells_of(border.NUM_IMAGES, border.STUDENTS, [0])]
    assert len(cells) == 4 * 3 * 2
    seen = {cell.config.data.num_samples: cell.config.data.num_samples * cell.config.optim.epochs for cell in cells}
    assert seen == {500: 30_000, 2000: 30_000, 8000: 32_000, 50000: 50_000}  # whole epochs
    recipe = recipes.get("cifar10-small")
    assert recipe.data.num_samples * recipe.optim.epochs == 30_000
    assert {cell.config.evaluation.threat_model.epsilon for cell in cells} == {8 / 255}


def test_the_picture_of_the_border_is_drawn(tmp_path):
    rows = [one | {"autoattack": one["natural"]} for one in (row("adaad", 0.5), row("pgd-at", 0.4))]
    border.plot(tmp_path / "border.png", rows)
    assert (tmp_path / "border.png").read_bytes().startswith(b"\x89PNG")


def test_all_methods_are_tuned_with_the_same_budget():
    assert set(tune.CANDIDATES) >= {"pgd-at", "trades", "ard", "iad", "rslad", "akd", "adaad", "adaiad", "adaad+igdm"}
    assert set(map(len, tune.CANDIDATES.values())) == {3}
    configs = [cell.config for cell in tune.cells_of("cifar10-small", [*tune.CANDIDATES], ["mode=compiled"])]
    assert Counter(config.method for config in configs) == dict.fromkeys(tune.CANDIDATES, 3)
    settings = [(c.method, str(c.inner), str(c.method_options), str(c.optim)) for c in configs]
    assert len(set(settings)) == len(settings)  # no candidate repeats another one
    for config in configs:
        methods.get(config.method).with_options(**config.method_options)


def test_the_candidate_with_the_best_robust_accuracy_is_chosen():
    figures = [("adaad", 0.80, 0.40), ("adaad", 0.70, 0.44), ("pgd-at", 0.70, 0.41)]
    rows = [{"method": m, "natural_best": natural, "robust_best": robust} for m, natural, robust in figures]
    assert [one["chosen"] for one in tune.chosen(rows)] == ["", "yes", "yes"]


def result(method: str, seed: int, attack: str, accuracy: float) -> Row:
    return {"student": "rescnn-32", "method": method, "seed": str(seed), "attack": attack, "accuracy": str(accuracy)}


def test_each_method_has_its_seeds():
    cells = [*cifar10.cells_of(["rescnn-8", "cnn-8"], ["adaad", "ard"], [0, 1, 2], ["inner.step_size=0.02"])]
    configs = [cell.config for cell in cells]
    assert Counter((c.student.name, c.method) for c in configs) == {
        ("rescnn-8", "adaad"): 3,
        ("cnn-8", "adaad"): 3,
        ("rescnn-8", "ard"): 2,
        ("cnn-8", "ard"): 2,
    }
    assert [c.seed for c in configs] == sorted(c.seed for c in configs)  # a cut study has whole seeds
    assert {c.inner.step_size for c in configs} == {0.02}
    (wider,) = cifar10.cells_of(["rescnn-8"], [cifar10.ADAAD_AT_LARGER_RADIUS], [2])
    assert wider.name == "adaad at 12/255"
    assert (wider.config.inner.threat_model.epsilon, wider.config.inner.step_size) == (12 / 255, 3 / 255)
    assert wider.config.evaluation.threat_model.epsilon == 8 / 255
    assert {c.method_options["kl_reduction"] for c in configs} == {"batchmean"}


@pytest.mark.parametrize("name", cifar10.LINES)
def test_each_line_is_compiled_unless_its_student_is_in_train_mode(name):
    (cell,) = cifar10.cells_of(["cnn-4-s1"], [name], [0], ["mode=compiled"])
    assert cell.config.mode == ("compiled" if cell.config.inner.student_eval else "eager")


def test_the_table_of_methods_has_means_spreads_and_the_best_of_each_student_in_bold():
    rows = [result("pgd-at", 0, "natural", 0.40), result("pgd-at", 1, "natural", 0.42)]
    rows += [result("adaad", 0, "natural", 0.45), result("adaad", 1, "natural", 0.47)]
    rows += [result("pgd-at", 0, "pgd20", 0.25), result("pgd-at", 1, "pgd20", 0.27), result("adaad", 0, "pgd20", 0.3)]
    teacher = [{"student": "t", "attack": "natural", "accuracy": "0.649"}]
    assert cifar10.table(rows, teacher).splitlines()[2:] == [
        "| t | teacher | 1 | 64.9 |  |",
        "| rescnn-32 | `pgd-at` | 2 | 41.0 ± 1.4 | 26.0 ± 1.4 |",
        "| rescnn-32 | `adaad` | 2 | **46.0 ± 1.4** | **30.0** (of 1) |",
    ]


def test_the_picture_of_the_methods_is_drawn(tmp_path):
    row = {"student": "rescnn-32", "method": "adaad", "seed": "0", "natural_accuracy": "0.5", "robust_accuracy": "0.3"}
    cifar10.plot(tmp_path / "curves.png", [row | {"epoch": str(epoch)} for epoch in (1, 2)], "rescnn-32")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cifar10_writes_results_and_curves_of_what_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "RECIPE", "demo")
    fixed = [*SMALL, "evaluation.attacks=[natural,pgd20]", "evaluation.num_images=8", "--students", "cnn-4-s1"]
    fixed += ["--seeds", "0", "--folder", str(tmp_path), "--output", str(tmp_path)]
    with pytest.raises(SystemExit):
        cifar10.main([*fixed, "--trained"])
    cifar10.main([*fixed, "--methods", "pgd-at"])
    cifar10.main([*fixed, "--methods", "pgd-at,adaad", "--trained"])
    with (tmp_path / cifar10.ROWS).open() as file:
        rows = [*csv.DictReader(file)]
    assert [(r["method"], r["attack"], r["num_images"]) for r in rows] == [
        ("pgd-at", "natural", "8"),
        ("pgd-at", "pgd20", "8"),
    ]
    with (tmp_path / cifar10.CURVES).open() as file:
        assert [r["epoch"] for r in csv.DictReader(file)] == ["1", "2"]


@pytest.mark.slow
def test_border_writes_a_row_per_student(tmp_path, monkeypatch):
    monkeypatch.setattr(border, "RECIPE", "demo")
    path = tmp_path / "border.csv"
    options = ["--train-images", "64", "--students", "cnn-4-s1", "--folder", str(tmp_path), "--output", str(path)]
    border.main([*SMALL, "evaluation.attacks=[natural,pgd20]", "evaluation.num_images=8", *options])
    with path.open() as file:
        rows = [*csv.DictReader(file)]
    assert [(r["method"], r["train_images"], r["num_images"]) for r in rows] == [
        ("pgd-at", "64", "8"),
        ("adaad", "64", "8"),
    ]
    assert all(0 <= float(r["pgd20"]) <= float(r["natural"]) <= 1 for r in rows)


@pytest.mark.slow
def test_tune_writes_the_validation_accuracies_of_each_candidate(tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "CANDIDATES", {"pgd-at": ((), ("inner.num_steps=1",))})
    path = tmp_path / "tune.csv"
    tune.main(["demo", *SMALL, "--methods", "pgd-at", "--folder", str(tmp_path), "--output", str(path)])
    with path.open() as file:
        rows = [*csv.DictReader(file)]
    assert [r["settings"] for r in rows] == ["", "inner.num_steps=1"]
    assert "yes" in [r["chosen"] for r in rows]
    assert all(float(r["robust_best"]) >= float(r["robust_last"]) for r in rows)  # the best epoch is that of robustness
