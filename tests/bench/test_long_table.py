"""Table of long trainings, from invented rows, and a run of the whole comparison at the size of a test."""

import csv

import pytest
from small_runs import SMALL

from bench import policies
from bench.long_table import Paired, computed_gain, plot, table
from bench.policy_settings import LONG, TABLES, Setting, Table
from fastadaad.cli.comparison.experiment import Experiment

EXACT, PGD_AT, DIRECTIONAL = LONG.settings[:3]


def accuracy_rows() -> list[dict[str, str]]:
    """Two seeds that differ by 4 points. Directional loses 1.0 and 0.5 points to exact, pgd-at 2 points twice."""
    accuracies = {EXACT: (0.80, 0.84), DIRECTIONAL: (0.79, 0.835), PGD_AT: (0.78, 0.82)}
    return [
        {"setting": setting.name, "seed": str(seed), "attack": attack, "accuracy": str(accuracy), "teacher_runs": runs}
        for setting, by_seed in accuracies.items()
        for seed, (accuracy, runs) in enumerate(zip(by_seed, ("4.0", "5.0"), strict=True))
        for attack in ("natural", "pgd20", "autoattack")
    ]


def test_differences_are_paired_by_seed():
    """Seeds are far apart, and the differences close together: -1.0 and -0.5 have a standard error of 0.25."""
    speeds = [{"setting": DIRECTIONAL.name, "times_exact_p50": "2.1"}]
    exact, pgd_at, directional = table(LONG, accuracy_rows(), speeds).splitlines()[2:]
    assert exact.split(" | ")[-3:] == ["82.00", "82.00", "82.00 |"]
    assert directional.startswith("| `directional(every=3)` | 2.10 | 4.5 |")
    assert directional.split(" | ")[-3] == "81.25 (-0.75 ± 0.25)"
    assert pgd_at.split(" | ")[-3] == "80.00 (-2.00 ± 0.00)"


def test_an_attack_without_rows_has_no_column():
    rows = [row for row in accuracy_rows() if row["attack"] != "autoattack"]
    heading, _, exact, *_ = table(LONG, rows, []).splitlines()
    assert heading.endswith("| natural | pgd20 |")
    assert exact.endswith("| 82.00 | 82.00 |")
    assert "measured" not in heading  # nor has a speed


def test_one_seed_has_no_error():
    assert Paired.of({"0": 50.0}, {"0": 51.0, "1": 60.0}).cell(with_difference=True) == "50.00 (-1.00)"
    with pytest.raises(ValueError, match=r"no seed of \['2'\]"):
        Paired.of({"2": 50.0}, {"0": 51.0})


def test_the_computed_gain_counts_the_teachers_passes():
    """ResNet-18 has 0.56 GMAC and its teacher 26.8: ten passes both ways against four, and one outside the search."""
    student, teacher = 0.556, 26.8

    def cost(queries: float, steps: int = 10) -> float:
        return 2 * steps * student + 2 * queries * teacher + 4 * student + teacher

    assert computed_gain(LONG, DIRECTIONAL, 4) == pytest.approx(cost(10) / cost(4), rel=0.01)
    assert computed_gain(LONG, DIRECTIONAL, 6.5) == pytest.approx(cost(10) / cost(6.5), rel=0.01)
    assert computed_gain(LONG, LONG.settings[4], 3) == pytest.approx(cost(10) / cost(3, steps=3), rel=0.01)


def test_the_picture_is_drawn(tmp_path):
    rows = [
        {"setting": name, "seed": seed, "epoch": epoch, "natural": "0.8", "robust": "0.6"}
        for name in ("exact", "refreshed(every=3)")
        for seed in "01"
        for epoch in ("10", "20")
    ]
    plot(tmp_path / "long.png", rows)
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_comparison_runs_from_the_trainings_to_its_rows(tmp_path, monkeypatch):
    settings = (Setting(), Setting(method="pgd-at"))
    table = Table(recipe="demo", overrides=SMALL, settings=settings)
    monkeypatch.setitem(TABLES, "long", table)
    command = ["--table", "long", "--seeds", "0", "--autoattack-images", "1", "--output", str(tmp_path)]
    policies.main([*command, "--folder", str(tmp_path / "runs")])
    with (tmp_path / "policies-long.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [setting.name for setting in settings]
    assert {(row["setting"], row["attack"]) for row in rows} == {
        (name, attack) for name in names for attack in ("natural", "pgd20", "autoattack")
    }
    with (tmp_path / "policies-long-curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [(row["setting"], row["epoch"]) for row in curves] == [
        (name, str(epoch)) for name in names for epoch in (1, 2)
    ]
    command[command.index("--autoattack-images") + 1] = "0"
    policies.main([*command, "--folder", str(tmp_path / "runs")])
    with (tmp_path / "policies-long.csv").open() as file:
        assert {row["attack"] for row in csv.DictReader(file)} == {"natural", "pgd20"}


def test_runs_of_the_teacher_follow_the_interval_of_each_epoch(tmp_path):
    """Ten steps at intervals 4, 3 and 1 ask 3, 4 and 10 times."""
    config = LONG.config(DIRECTIONAL, seed=0)
    experiment = Experiment(config, tmp_path, label="directional")
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "metrics.csv").write_text("epoch,query_interval\n1,4\n2,3\n3,1\n")
    assert policies.teacher_runs(experiment) == pytest.approx(17 / 3, abs=0.01)
    (experiment.folder / "metrics.csv").write_text("epoch,query_interval\n1,\n2,\n")
    assert policies.teacher_runs(experiment) == 10  # exact has no interval
