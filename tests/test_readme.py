"""Examples and commands of the README run or parse, and its figures are rows of bench/results."""

import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest

from bench import readme
from fastadaad import cli, recipes
from fastadaad.cli.comparison.compare import method_names
from fastadaad.config_io import override

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_examples_run_one_after_the_other(capsys):
    namespace: dict = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), namespace)
        printed = capsys.readouterr().out
        assert "print(" not in example or float(re.search(r"[0-9.]+", printed)[0]) > 0
    assert len(EXAMPLES) == 7  # the networks, and one for each kind of program


@pytest.mark.parametrize("line", re.findall(r"^    fastadaad (.+)$", README, flags=re.MULTILINE))
def test_command_line_example_parses(line):
    arguments = cli.parse(shlex.split(line))
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None:
        methods = getattr(arguments, "methods", "") or getattr(arguments, "method", None) or "adaad"
        for method in method_names(methods.split(",")):
            override(recipes.get(recipe, method=method), getattr(arguments, "overrides", ()))


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_links_resolve(link):
    assert (ROOT / link).exists()


def rows_of(name: str) -> list[dict[str, str]]:
    with open(ROOT / "bench" / "results" / name, newline="") as file:
        return list(csv.DictReader(file))


def table_under(header: str) -> list[list[str]]:
    """Returns the cells of the README's table with this header line, without bold."""
    lines = README[README.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_systems_matches_its_rows():
    measured: dict[tuple[str, str, str], list[float]] = {}
    for row in rows_of("fashion-mnist-small.csv"):
        measured.setdefault((row["student"], row["method"], row["attack"]), []).append(100 * float(row["accuracy"]))
    header = "| student | method | natural | fgsm | pgd20 | cw | autoattack | training |"
    table = table_under(header)
    attacks = [cell.strip() for cell in header.strip("|").split("|")][2:7]
    assert {(student, method) for student, method, *_ in table} == {key[:2] for key in measured}
    for student, method, *cells in table:
        for attack, cell in zip(attacks, cells, strict=False):
            accuracies = measured[student, method, attack]
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
            assert cell == f"{statistics.fmean(accuracies):.1f}{spread}", (student, method, attack)


def test_the_tables_of_speed_are_up_to_date():
    assert readme.rewritten(README, readme.block()) == README, "run python -m bench readme"


def test_the_tables_of_speed_match_the_last_rows():
    rows = rows_of("step.csv")
    header = README[README.index("| networks, batch | method | reference") :].partition("\n")[0]
    table = table_under(header)
    assert table
    for networks, method, rate, eager, compiled, *_ in table:
        own = [row for row in rows if f"{row['student']} from {row['teacher']}, {row['batch_shape']}" == networks]
        latest = {row["variant"]: row for row in own if f"`{row['method']}`" == method}
        assert rate == f"{float(latest['reference']['images_per_s']):.1f}"
        for cell, variant in ((eager, "distiller-eager"), (compiled, "distiller-compiled")):
            quantiles = [float(latest[variant][f"ratio_{key}"]) for key in ("p50", "p20", "p80") if variant in latest]
            assert cell == ("{:.2f} ({:.2f} to {:.2f})".format(*quantiles) if quantiles else ""), variant


def test_the_figures_of_the_data_match_their_rows():
    words = " ".join(README.split())
    speed = {
        (row["images"].split()[1], row["engine"]): float(row["times_dataloader_p50"]) for row in rows_of("data.csv")
    }
    waiting = {(row["recipe"], row["engine"]): float(row["waiting_share_p50"]) for row in rows_of("data-wait.csv")}
    assert f"come {speed['arrays', 'resident']:.0f} times as fast as from a `DataLoader`" in words
    assert f"`fashion-mnist` spends {100 * waiting['fashion-mnist', 'resident']:.2f} % of its time waiting" in words
    assert f"image files come {speed['JPEG', 'dali']:.2f} times as fast by DALI" in words
