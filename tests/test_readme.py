"""Examples and commands of the README run or parse; its figures and those of its tables in docs are measured rows."""

import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest

from bench import speed
from bench import step as bench_step
from bench.pages import rewritten
from fastadaad import cli, recipes
from fastadaad.cli.comparison.compare import method_names
from fastadaad.config_io import override

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS, SPEED = ((ROOT / "docs" / name).read_text() for name in ("results.md", "speed.md"))
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip()
    for line in re.findall(r"^    (.+)$", re.sub(r"```.*?```", "", README, flags=re.DOTALL), flags=re.MULTILINE)
]


def test_the_readme_is_short():
    assert sum(not line.startswith("|") for line in README.splitlines()) <= 160  # a table is looked at, not read


def test_the_python_example_runs_and_prints_the_radius_and_the_loss(capsys):
    (example,) = EXAMPLES
    exec(compile(example, "README.md", "exec"), {})
    radius, loss = [float(re.search(r"[0-9.]+", line)[0]) for line in capsys.readouterr().out.splitlines()]
    assert radius == pytest.approx(8, abs=1e-3)
    assert loss > 0


@pytest.mark.parametrize("line", COMMANDS)
def test_command_parses(line):
    program, *words = shlex.split(line)
    if program == "torchrun":
        program, words = "fastadaad", words[words.index("fastadaad") + 1 :]
    if words[:3] == ["-m", "bench", "step"]:
        assert bench_step._parse(words[3:])
    elif program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "pip":
        assert words[0] == "install"
    elif program == "fastadaad":
        check_command(words)
    else:
        assert line == "source .venv/bin/activate"


def check_command(words: list[str]) -> None:
    """Parses a command of `fastadaad` and applies its settings to its recipe with each method that it names."""
    arguments = cli.parse(words)
    recipe = getattr(arguments, "recipe", None)
    if recipe is not None:
        methods = getattr(arguments, "methods", "") or getattr(arguments, "method", None) or "adaad"
        for method in method_names(methods.split(",")):
            override(recipes.get(recipe, method=method), getattr(arguments, "overrides", ()))


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https://)([^)]+)\)", README))
def test_links_resolve(link):
    assert (ROOT / link).exists()


def rows_of(name: str) -> list[dict[str, str]]:
    with open(ROOT / "bench" / "results" / name, newline="") as file:
        return list(csv.DictReader(file))


def table_under(page: str, header: str) -> list[list[str]]:
    """Returns the cells of a page's table with this header line, without bold."""
    lines = page[page.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_systems_matches_its_rows():
    measured: dict[tuple[str, str, str], list[float]] = {}
    for row in rows_of("fashion-mnist-small.csv"):
        measured.setdefault((row["student"], row["method"], row["attack"]), []).append(100 * float(row["accuracy"]))
    header = "| student | method | natural | fgsm | pgd20 | cw | autoattack | training |"
    table = table_under(RESULTS, header)
    attacks = [cell.strip() for cell in header.strip("|").split("|")][2:7]
    assert {(student, method) for student, method, *_ in table} == {key[:2] for key in measured}
    for student, method, *cells in table:
        for attack, cell in zip(attacks, cells, strict=False):
            accuracies = measured[student, method, attack]
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
            assert cell == f"{statistics.fmean(accuracies):.1f}{spread}", (student, method, attack)


def test_the_tables_of_speed_are_up_to_date():
    assert rewritten(SPEED, speed.block(), "speed") == SPEED, "run python -m bench speed"


def test_the_tables_of_speed_match_the_last_rows():
    rows = rows_of("step.csv")
    header = SPEED[SPEED.index("| networks, batch | method | reference") :].partition("\n")[0]
    table = table_under(SPEED, header)
    assert table
    for networks, method, rate, eager, compiled, *_ in table:
        own = [row for row in rows if f"{row['student']} from {row['teacher']}, {row['batch_shape']}" == networks]
        latest = {row["variant"]: row for row in own if f"`{row['method']}`" == method}
        assert rate == f"{float(latest['reference']['images_per_s']):.1f}"
        for cell, variant in ((eager, "distiller-eager"), (compiled, "distiller-compiled")):
            quantiles = [float(latest[variant][f"ratio_{key}"]) for key in ("p50", "p20", "p80") if variant in latest]
            assert cell == ("{:.2f} ({:.2f} to {:.2f})".format(*quantiles) if quantiles else ""), variant


def test_the_figures_of_the_data_match_their_rows():
    words = " ".join(SPEED.split())
    speed = {
        (row["images"].split()[1], row["engine"]): float(row["times_dataloader_p50"]) for row in rows_of("data.csv")
    }
    waiting = {(row["recipe"], row["engine"]): float(row["waiting_share_p50"]) for row in rows_of("data-wait.csv")}
    assert f"come {speed['arrays', 'resident']:.0f} times as fast as from a `DataLoader`" in words
    assert f"`fashion-mnist` spends {100 * waiting['fashion-mnist', 'resident']:.2f} % of its time waiting" in words
    assert f"image files come {speed['JPEG', 'dali']:.2f} times as fast by DALI" in words


def test_the_figures_of_speed_in_the_readme_match_the_last_rows():
    steps = {(row["pair"], row["variant"]): row for row in rows_of("step.csv") if row["method"] == "adaad"}
    ours = {pair: steps[pair, "distiller-compiled"] for pair in ("cifar", "fashion-mnist", "demo")}
    ratios = {
        pair: "{:.2f} ({:.2f} to {:.2f}) times".format(*[float(row[f"ratio_{p}"]) for p in ("p50", "p20", "p80")])
        for pair, row in ours.items()
    }
    words = " ".join(README.split())
    memory = float(ours["cifar"]["inner_peak_of_reference"])
    assert f"ResNet-18 from WideResNet-16-4: {ratios['cifar']} as fast, with {memory:.2f} times the memory" in words
    assert f"Fashion-MNIST's networks: {ratios['fashion-mnist']}; the demo's: {ratios['demo']}" in words


@pytest.mark.parametrize("page", [README, RESULTS], ids=["README", "results"])
def test_the_table_of_cifar10_matches_its_rows(page):
    measured: dict[tuple[str, str, str], list[float]] = {}
    for row in rows_of("cifar10-small.csv"):
        measured.setdefault((row["student"], row["method"], row["attack"]), []).append(100 * float(row["accuracy"]))
    header = page[page.index("| network | method | seeds |") :].partition("\n")[0]
    teacher, *students = table_under(page, header)
    attacks = [cell.strip() for cell in header.strip("|").split("|")][3:]
    assert sorted((student, method.strip("`")) for student, method, *_ in students) == sorted({k[:2] for k in measured})
    for student, method, seeds, *cells in students:
        for attack, cell in zip(attacks, cells, strict=True):
            accuracies = measured.get((student, method.strip("`"), attack), [])
            if not accuracies:
                assert cell == ""
                continue
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
            count = "" if len(accuracies) == int(seeds) else f" (of {len(accuracies)})"
            shown = cell.replace("**", "")
            assert shown == f"{statistics.fmean(accuracies):.1f}{spread}{count}", (student, method, attack)
    of_teacher = {row["attack"]: f"{100 * float(row['accuracy']):.1f}" for row in rows_of("cifar10-teacher.csv")}
    assert teacher[3:] == [of_teacher.get(attack, "") for attack in attacks]


def leads_on_cifar10(student: str, attack: str) -> list[float]:
    """Returns AdaAD at 12/255 minus PGD-AT in points, for each seed that both have."""
    adaad, pgd_at = (
        {
            row["seed"]: 100 * float(row["accuracy"])
            for row in rows_of("cifar10-small.csv")
            if (row["student"], row["method"], row["attack"]) == (student, method, attack)
        }
        for method in ("adaad at 12/255", "pgd-at")
    )
    return [adaad[seed] - pgd_at[seed] for seed in adaad.keys() & pgd_at.keys()]


@pytest.mark.parametrize("page", [README, RESULTS], ids=["README", "results"])
def test_the_lead_of_adaad_on_cifar10_matches_its_rows(page):
    natural, autoattack = leads = [leads_on_cifar10("rescnn-32", attack) for attack in ("natural", "autoattack")]
    assert len(natural) == len(autoattack) == 3
    means = [f"{statistics.fmean(lead):.1f} ± {statistics.stdev(lead) / len(lead) ** 0.5:.1f}" for lead in leads]
    text = f"end {means[0]} points above those of PGD-AT in natural accuracy and {means[1]} points under AutoAttack"
    assert text in " ".join(page.split())


def test_adaad_leads_with_the_smaller_network_too():
    sentence = "With the smaller network AdaAD at 12/255 is ahead in both too, under AutoAttack by more (one seed)."
    assert sentence in " ".join(RESULTS.split())
    assert len(leads_on_cifar10("cnn-32", "autoattack")) == 1
    assert min(leads_on_cifar10("cnn-32", "natural")) > 0
    larger, smaller = (statistics.fmean(leads_on_cifar10(name, "autoattack")) for name in ("rescnn-32", "cnn-32"))
    assert smaller > larger
