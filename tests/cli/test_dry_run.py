"""`compare --dry-run`: the plan has each student once, writes nothing, and agrees with the roofline of bench."""

import csv
from pathlib import Path

import pytest

from fastadaad import cli, load_model, recipes
from fastadaad.cli.comparison.dry_run import least_gib, least_hours
from fastadaad.config_io import override

ROOFLINE = Path(__file__).parents[2] / "bench" / "results" / "roofline.csv"


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["exact", "refreshed(every=10)", "linearized(top=3,every=10)"])
@pytest.mark.parametrize("card", ["A100", "H100"])
def test_the_hours_are_those_of_the_roofline(policy, card):
    with open(ROOFLINE, newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["recipe"], row["policy"]) == ("cifar10-rn18", policy)]
    (rate,) = [float(row["best_images_per_s"]) for row in rows if card in row["device"] and row["precision"] == "bf16"]
    config = override(recipes.get("cifar10-rn18"), [f"teacher.policy={policy}", "data.validation_size=0"])
    assert least_hours(config, card) == pytest.approx(200 * 50_000 / rate / 3600, rel=0.02)


def test_the_memory_holds_weights_gradients_momentum_and_images():
    config = recipes.get("fashion-mnist")
    student, teacher = (
        sum(parameter.numel() for parameter in load_model(name, in_channels=1).parameters())
        for name in (config.student.name, config.teacher.name)
    )
    assert least_gib(config) * 2**30 == pytest.approx(4 * (3 * student + teacher) + 60_000 * 28 * 28)


def test_the_plan_lists_each_student_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["compare", "demo", "--students", "cnn-4-s1,cnn-8-s1", "--seeds", "0,1", "--dry-run"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " to do " in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")][:3] for line in lines]
    assert cells == [
        [student, method, seed]
        for student in ("cnn-4-s1", "cnn-8-s1")
        for method in ("pgd-at", "adaad")
        for seed in ("0", "1")
    ]
    assert [*tmp_path.iterdir()] == []


def test_the_plan_needs_no_file_of_the_teacher_and_names_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    words = ["compare", "demo", "--methods", "pgd-at,adaad,trades", "--dry-run", "teacher.checkpoint=big.pt"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert out.count(" to do ") == 3
    assert out.count("The teacher's file big.pt does not exist yet: its students count as to do.") == 1
    Path("big.pt").touch()
    assert cli.main(words) == 0
    assert "does not exist yet" not in capsys.readouterr().out
    assert cli.main([word for word in words if word != "--dry-run"]) == 2  # a training needs it


def test_a_data_set_of_unknown_size_has_no_hours():
    config = override(recipes.get("cifar10-rn18", method="pgd-at"), ["data.name=folder", "data.root=pets"])
    assert (least_hours(config, "A100"), least_gib(config)) == (None, None)
