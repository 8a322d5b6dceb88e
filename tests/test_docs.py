"""Examples on the pages under docs run, commands parse, links resolve, and figures are rows of bench/results."""

import copy
import csv
import re
import shlex
import statistics
from pathlib import Path

import pytest
import torch

from bench import faults_kinds, faults_surroundings, hours, long_table
from bench import step as bench_step
from bench.data_table import tables
from bench.measures import measures_table
from bench.policy_table import policy_lines, table
from fastadaad import cli, load_model, methods, recipes
from fastadaad.cli.comparison.compare import method_names
from fastadaad.config_io import override
from fastadaad.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))}
EXAMPLES = {name: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()}
COMMANDS = [
    line for text in PAGES.values() for line in re.findall(r"^    \$? ?fastadaad (.+)$", text, flags=re.MULTILINE)
]
QUICK_STARTS = ("quickstart-benchmark.md", "quickstart-drop-in.md", "quickstart-train.md")
QUICK_START_COMMANDS = [
    line
    for name in QUICK_STARTS
    for line in re.findall(r"^    (.+)$", re.sub(r"```.*?```", "", PAGES[name], flags=re.DOTALL), flags=re.MULTILINE)
]


def run_example(page: str) -> dict:
    namespace: dict = {}
    exec(compile(EXAMPLES[page][0], page, "exec"), namespace)
    return namespace


def test_pages_with_an_example():
    guides = {"data.md", "folding.md", "methods.md", "models.md"}
    assert {name for name, examples in EXAMPLES.items() if examples} == guides | set(QUICK_STARTS)


def test_the_example_of_folding_finds_the_same_images_without_copies(capsys):
    torch.manual_seed(0)
    run_example("folding.md")
    assert float(capsys.readouterr().out.split()[0]) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK_STARTS)
def test_the_examples_of_a_quick_start_run_one_after_the_other(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {}
    for example in EXAMPLES[name]:
        exec(compile(example, name, "exec"), namespace)
        printed = re.findall(r"(?<![\w.])[0-9]+\.?[0-9]*", capsys.readouterr().out)
        assert "print(" not in example or float(printed[-1]) > 0


@pytest.mark.parametrize("line", QUICK_START_COMMANDS)
def test_every_command_of_a_quick_start_parses(line):
    if line.startswith("python -m bench step "):
        assert bench_step._parse(shlex.split(line)[4:])
    elif line.startswith("make "):
        assert re.search(rf"^{line[5:]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif line != "source .venv/bin/activate":
        check_command(re.sub(r"^(torchrun .*-m )?fastadaad ", "", line))  # torchrun's words: test_scaling_page.py


def check_command(command: str) -> None:
    """Parses a command of `fastadaad` and applies its settings to its recipe."""
    arguments = cli.parse(shlex.split(command))
    if recipe := getattr(arguments, "recipe", None):
        names = getattr(arguments, "methods", "") or getattr(arguments, "method", None) or "adaad"
        for method in method_names(names.split(",")):
            override(recipes.get(recipe, method=method), arguments.overrides)


def test_the_example_of_data_yields_the_same_batch_from_each_engine(capsys):
    run_example("data.md")
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [engine for engine, _ in lines] == ["resident", "dali", "torch"]
    assert len({batch for _, batch in lines}) == 1
    assert lines[0][1].startswith("(64, 1, 8, 8)")


def test_the_example_of_models_prints_the_parameters_of_the_network(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_example("models.md")
    expected = sum(parameter.numel() for parameter in load_model("wrn-10-1").parameters())
    assert capsys.readouterr().out == f"{expected}\n"


def test_the_example_method_computes_the_formulas_of_its_docstrings(capsys, monkeypatch, tmp_path):
    namespace = run_example("methods.md")
    assert float(re.search(r"[0-9.]+", capsys.readouterr().out)[0]) > 0
    row, student, teacher = namespace["logit_matching"], namespace["student"].eval(), namespace["teacher"].eval()

    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    student64, teacher64 = (copy.deepcopy(network).double() for network in (student, teacher))
    value = (student64(x) - teacher64(x)).square().sum() / 2
    (expected,) = torch.autograd.grad(value, x)
    x32 = x.detach().float().requires_grad_()
    logits = student(x32), teacher(x32)
    _, logit_gradients = row.objective.logit_gradients(tuple(output.detach() for output in logits), None)
    (gradient,) = torch.autograd.grad(logits, x32, logit_gradients)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    x_natural, x_adv = torch.rand(4, 3, 32, 32), x.detach().float()
    loss = row.outer_loss(student, teacher, x_natural, x_adv)
    torch.testing.assert_close(loss.double(), value / 4, rtol=1e-4, atol=1e-6)

    monkeypatch.setitem(methods.METHODS, row.name, row)
    config = recipes.get("demo", method="logit-matching")
    assert Trainer(config, tmp_path).distiller.method == row


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_parses(command):
    check_command(command)


@pytest.mark.parametrize("name", PAGES)
def test_files_named_on_a_page_exist(name):
    links = re.findall(r"\]\((?!https://)([^)]+)\)", PAGES[name])
    results = re.findall(r"`(bench/results/[\w.-]+)`", PAGES[name])
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    assert [path for path in results if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", "11,173,962"), ("resnet34", "21,282,122"), ("preactresnet18", "11,172,170"),
        ("mobilenet-v2", "2,296,922"), ("wrn-28-10", "36,479,194"),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_models_page(name, parameters):
    with torch.device("meta"):
        assert f"{sum(parameter.numel() for parameter in load_model(name).parameters()):,}" == parameters
    assert parameters in PAGES["models.md"]


def test_every_method_is_on_its_page():
    assert all(f"| `{name}` |" in PAGES["methods.md"] for name in methods.METHODS)


def rows_of(name: str) -> list[dict[str, str]]:
    with open(ROOT / "bench" / "results" / name, newline="") as file:
        return list(csv.DictReader(file))


def test_the_agreement_with_the_plain_loop_matches_its_rows():
    rows = rows_of("agreement.csv")
    small, cifar = (
        100 * max(float(row["pixels_that_differ"]) for row in rows if row["pair"] == pair)
        for pair in ("small", "cifar")
    )
    kl = 100 * max(float(row["kl_difference"]) for row in rows)
    text = " ".join(PAGES["quickstart-drop-in.md"].split())
    assert f"at most {small:.1f} % of the pixels of `x_adv` differ for small networks and {cifar:.1f} % for" in text
    assert f"and the kl that is reached by at most {kl:.4f} %" in text


def test_the_saving_by_freed_memory_matches_its_rows():
    time = {(row["pair"], row["variant"]): float(row["cpu_p50_ms"]) for row in rows_of("allocator.csv")}
    small, fashion = (
        f"{1 - time[pair, 'eager, freed memory kept'] / time[pair, 'eager']:.0%}".replace("%", " %")
        for pair in ("small", "fashion-mnist")
    )
    page = " ".join(PAGES["performance.md"].split())
    assert f"saves {small} of the processor time of a step of the small networks on 28x28 pixels, and {fashion}" in page


def test_the_figures_of_the_performance_page_match_their_rows():
    page = " ".join(PAGES["performance.md"].split())
    steps = {(row["method"], row["variant"]): row for row in rows_of("step.csv") if row["pair"] == "cifar"}
    ours, plain = steps["adaad", "distiller-compiled"], steps["adaad", "reference"]
    adaiad = steps["adaiad", "distiller-compiled"]
    claims = [
        "compiled: {:.2f} s for the inner loop, {:.2f} s for the outer loss and its backward pass".format(
            *[float(ours[stage]) / 1e3 for stage in ("inner_ms", "outer_ms")]
        ),
        f"The plain program: {float(plain['inner_ms']) / 1e3:.2f}, {float(plain['outer_ms']) / 1e3:.2f} and",
        f"is {float(ours['gflop']):,.0f} GFLOP",
        f"at {float(ours['gflop_per_s']):.0f} GFLOP/s: {float(ours['of_matrix_product']):.2f} times",
        f"and {float(ours['of_convolutions']):.2f} times that of the same convolutions",
        f"takes {float(ours['overhead_p50']):.2f} times as long as the bare networks",
        f"The plain program runs at {float(plain['of_convolutions']):.2f} times the convolutions' rate",
        "ours is {:.2f} times ({:.2f} to {:.2f})".format(*[float(ours[f"ratio_{p}"]) for p in ("p50", "p20", "p80")]),
        "it is {:.2f} times ({:.2f} to {:.2f})".format(*[float(adaiad[f"ratio_{p}"]) for p in ("p50", "p20", "p80")]),
        f"is {float(ours['inner_peak_of_reference']):.2f} times the plain program's",
    ]
    small = {(row["pair"], row["variant"]): row for row in rows_of("step.csv") if row["method"] == "adaad"}
    for pair, name in (("demo", "the demo's"), ("fashion-mnist", "Fashion-MNIST's")):
        quantiles = [float(small[pair, "distiller-compiled"][f"ratio_{p}"]) for p in ("p50", "p20", "p80")]
        claims.append(f"{name} {{:.2f}} times ({{:.2f}} to {{:.2f}})".format(*quantiles))
    for text, variant in (("run at {} and {} times the rate", "distiller-compiled"), ("at {} and {}.", "reference")):
        rates = [f"{float(small[pair, variant]['of_convolutions']):.2f}" for pair in ("demo", "fashion-mnist")]
        claims.append(text.format(*rates))
    reached = [row for row in rows_of("policies-kl.csv") if row["policy"].startswith("refreshed")]
    for epsilon, text in (
        ("0.1", "{} for `refreshed(every=10)`, {} for `(every=8)`, {} for"),
        ("0.2", "{}, {} and {}"),
    ):
        shares = {row["policy"]: f"{float(row['kl_of_exact']):.2f}" for row in reached if row["epsilon"] == epsilon}
        claims.append(text.format(*[shares[f"refreshed(every={every})"] for every in (10, 8, 3)]))
    assert [claim for claim in claims if claim not in page] == []
    assert {row["host_synchronisations"] for row in steps.values()} <= {"0", ""}


def test_the_tables_of_the_data_page_match_their_rows():
    assert tables(ROOT / "bench" / "results" / "data.csv") in PAGES["data.md"], "run python -m bench data --draw"


def test_the_data_engines_meet_their_targets():
    speed = {(row["images"].split()[1], row["engine"]): row for row in rows_of("data.csv")}
    assert float(speed["arrays", "resident"]["times_dataloader_p50"]) >= 15
    assert all(
        float(row["waiting_share_p50"]) < 0.01 for row in rows_of("data-wait.csv") if row["engine"] == "resident"
    )
    assert all(float(row["growth_share"]) < 0.05 for row in rows_of("data-memory.csv"))


def test_the_cost_of_filling_the_copies_matches_its_rows():
    def percent(pair: str) -> str:
        shares = [float(row["of_search_p50"]) for row in rows_of("refresh.csv") if row["pair"] == pair]
        return f"{100 * sum(shares):.1f} %"

    page = " ".join(PAGES["folding.md"].split())
    assert f"takes {percent('demo')} of a search of ten steps in the demo" in page
    assert f"and {percent('cifar')} for ResNet-18 from WRN-16-4" in page


def test_the_accuracy_of_each_precision_matches_its_rows():
    """Mean and standard deviation over the seeds: in fp32, and of the differences to the same seed in fp32."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows_of("precisions.csv"):
        for attack in ("natural", "pgd20"):
            found.setdefault(row["precision"], {}).setdefault(attack, []).append(100 * float(row[attack]))

    def spread(values: list[float], sign: str = "") -> str:
        return f"{statistics.fmean(values):{sign}.1f} ± {statistics.stdev(values):.1f}"

    page = " ".join(PAGES["performance.md"].split())
    fp32 = found.pop("fp32")
    assert f"in fp32 at {spread(fp32['natural'])} % natural and {spread(fp32['pgd20'])} % PGD-20 accuracy" in page
    for accuracies in found.values():
        natural, robust = (
            spread([a - b for a, b in zip(accuracies[attack], fp32[attack], strict=True)], "+")
            for attack in ("natural", "pgd20")
        )
        assert f"{natural} and {robust} with" in page


def test_the_table_of_measures_matches_its_rows():
    assert measures_table(rows_of("measures.csv")) in PAGES["performance.md"]


def test_the_table_of_policies_matches_its_rows():
    assert table(policy_lines(ROOT / "bench" / "results")) in PAGES["performance.md"]


def test_gain_and_cost_of_the_cheapest_policy_match_the_page():
    speeds = {(row["policy"], row["teacher_precision"]): row for row in rows_of("policies-speed.csv")}
    accuracies: dict[tuple[str, str, str], list[float]] = {}
    for row in rows_of("policies.csv"):
        key = row["policy"], row["teacher_precision"], row["attack"]
        accuracies.setdefault(key, []).append(100 * float(row["accuracy"]))

    def change(attack: str) -> float:
        exact, cheap = (accuracies[policy, "fp32", attack] for policy in ("exact", "refreshed(every=10)"))
        return statistics.fmean(cheap) - statistics.fmean(exact)

    times = f"{float(speeds['refreshed(every=10)', 'fp32']['times_exact_p50']):.1f} times as fast"
    words = " ".join(PAGES["performance.md"].split())
    assert times in words
    assert f"by {-change('natural'):.1f} points" in words
    assert change("pgd20") > 0  # robustness did not fall


@pytest.mark.parametrize("name", long_table.TABLE_NAMES)
def test_the_table_of_long_trainings_matches_its_rows(name):
    assert long_table.block(ROOT / "bench" / "results", name) in PAGES["performance.md"]


def test_the_pages_have_the_gain_and_the_cost_of_the_policy_that_holds():
    rows, speeds = rows_of("policies-long.csv"), rows_of("policies-long-speed.csv")
    accuracies = long_table.accuracies_of(rows, "pgd20")
    exact = accuracies.pop("exact")
    paired = {name: long_table.Paired.of(found, exact) for name, found in accuracies.items() if name != "pgd-at"}
    best = max(paired, key=lambda name: paired[name].difference)
    assert best == "directional(every=4), smaller last steps"
    (speed,) = [row["times_exact_p50"] for row in speeds if row["setting"] == best]
    losses = sorted(-one.difference for name, one in paired.items() if name != best)
    words = " ".join((ROOT / "README.md").read_text().split())
    assert f"{float(speed):.2f} times as fast as exact" in words
    assert f"by {paired[best].difference:+.1f} ± {paired[best].error:.1f} points" in words
    assert f"Other policies lose {losses[0]:.1f} to {losses[-1]:.1f} points" in words
    assert f"at {float(speed):.2f} times its speed" in " ".join(PAGES["speed.md"].split())
    shares = [row["policy_kl_share"] for row in rows_of("policies-cifar10-curves.csv") if row["setting"] == best]
    assert "0.94 of the exact kl or more" in " ".join(PAGES["performance.md"].split())
    assert min(float(share) for share in shares if share) >= 0.94
    natural, attacked = (
        long_table.Paired.of(found[best], found["exact"])
        for attack in ("natural", "autoattack")
        if (found := long_table.accuracies_of(rows_of("policies-cifar10.csv"), attack))
    )
    assert f"AutoAttack accuracy by {attacked.difference:+.1f} ± {attacked.error:.1f} points" in words
    assert f"and natural accuracy by {natural.difference:+.1f} (three seeds each)" in words


def test_the_survived_faults_match_their_rows():
    with open(ROOT / "bench" / "results" / "faults.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(row["tried"] == row["survived"] for row in rows)
    disk = ("checkpoint with a flipped bit", "full disk", "read-only folder", "truncated checkpoint")
    kinds = {
        "SIGKILLs": [row for row in rows if row["signal"] == "SIGKILL" and row["fault"] not in disk],
        "SIGTERMs": [row for row in rows if row["signal"] == "SIGTERM"],
        "faults of the disk": [row for row in rows if row["fault"] in disk],
        "of the output": [row for row in rows if row["fault"] in faults_surroundings.OUTPUT],
        "of the processes that read data": [row for row in rows if row["fault"] in faults_surroundings.WORKERS],
        "of processes and machine": [row for row in rows if row["fault"] in faults_surroundings.PROCESSES],
    }
    killed = {row["fault"] for row in rows} & faults_kinds.KINDS.keys()
    assert f" {len(killed)} kinds of run" in " ".join(PAGES["long-runs.md"].split())
    text = " ".join(PAGES["long-runs.md"].split())
    for name, found in kinds.items():
        assert f" {sum(int(row['survived']) for row in found)} {name}" in text, name


@pytest.mark.slow
def test_the_hours_of_the_paper_are_those_of_the_roofline():
    page = PAGES["reproduce.md"]
    assert hours.hours_table() in page, "run python -m bench hours"
    rows = {
        (row["recipe"], row["device"], row["policy"], row["precision"]): 1e7 / float(row["best_images_per_s"]) / 3600
        for row in rows_of("roofline.csv")
    }  # 200 epochs of 50,000 images
    for student, recipe in (("resnet18", "cifar10-rn18"), ("mobilenet-v2", "cifar10-mnv2")):
        of_columns = [
            rows[recipe, card, policy, precision]
            for card in ("A100-SXM-80GB", "H100-SXM")
            for policy, precision in (("exact", "tf32"), ("exact", "bf16"), ("directional(every=4)", "bf16"))
        ]
        cells = re.search(rf"^\| {student} \| `adaad` \| (.* to .*) \|$", page, flags=re.MULTILINE)[1].split(" | ")
        assert [float(cell.split(" to ")[0]) for cell in cells] == pytest.approx(of_columns, abs=0.06)
    with torch.device("meta"):
        assert f"{sum(parameter.numel() for parameter in load_model('wrn-34-20').parameters()):,} parameters" in page


# Line of the table in docs/performance.md -> candidate of the judge.
JUDGED = {
    "exact, ten equal steps": "exact",
    "exact, the last two steps": "exact steps of 1 1 1 1 1 1 1 1 0.5 0.25",
    "`directional`, at steps 0 2 5 8": "directional at 0 2 5 8",
    "`directional(every=3)`": "directional at 0 3 6 9",
    "`refreshed(every=3)`": "stale at 0 3 6 9",
    "`directional(every=4)`, the last": "directional at 0 4 8 of 1 1 1 1 1 1 1 0.5 0.5 0.25",
    "`directional(every=4)` |": "directional at 0 4 8",
    "`refreshed(every=4)`": "stale at 0 4 8",
    "three exact steps": "exact steps of 3 1.5 0.75",
}


@pytest.mark.parametrize(("begin", "candidate"), JUDGED.items())
def test_the_judge_of_the_policies_found_these_shares(begin, candidate):
    lines = PAGES["performance.md"].partition("**What holds longer.**")[2].splitlines()
    (line,) = [line for line in lines if line.startswith(f"| {begin}")]
    rows = [row for row in rows_of("policies-judge.csv") if row["candidate"] == candidate and row["epsilon"] == "0.125"]
    shares = [f"{float(row['kl_of_exact']):.2f}" for row in rows]
    assert line.strip(" |").split(" | ")[1:] == [rows[0]["teacher_passes"], *shares]


def test_the_ratios_on_one_core_are_those_of_the_rows():
    ratios = {
        (row["pair"], row["method"], row["mode"]): f"{float(row['ratio_p50']):.2f}"
        for row in rows_of("step-one-core.csv")
    }
    methods = sorted(ratios[key] for key in ratios if key[0] == "small" and key[2] == "eager")
    assert (ratios["small", "rslad", "eager"], ratios["small", "trades", "eager"]) == (methods[0], methods[-1])
    assert len(methods) == 11
    pairs = [ratios[pair, "adaad", mode] for pair in ("cifar", "mobilenet") for mode in ("eager", "compiled")]
    text = " ".join((ROOT / "docs" / "speed.md").read_text().split())
    assert f"{methods[0]} (`rslad`) to {methods[-1]} (`trades`) times" in text
    assert "resnet18 {} times eager and {} compiled, mobilenet-v2 {} and {}.".format(*pairs) in text
