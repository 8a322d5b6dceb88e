"""`fastadaad runs` and `fastadaad report`: states of runs, and pages as a browser shows them."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from tiny_runs import save_teacher, tiny_run

from fastadaad import cli, recipes
from fastadaad.cli.reports.page import page, picture, table
from fastadaad.cli.reports.run_facts import facts_of, run_folders
from fastadaad.runtime.locks import run_lock
from fastadaad.training.log import read_metrics

pytestmark = pytest.mark.slow
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A folder with a finished run and a comparison of two seeds, of the recipe `tiny`."""
    folder = tmp_path_factory.mktemp("runs")
    run = tiny_run(method="adaad", teacher=save_teacher(folder / "teacher.safetensors"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipes.RECIPES, "tiny", lambda method="adaad": tiny_run(method=method, teacher=run.teacher))
        train = ["train", "tiny", "teacher.policy=refreshed(every=2)", "--run-folder", str(folder / "one")]
        assert cli.main(train) == 0
        assert (
            cli.main(["compare", "tiny", "--methods", "pgd-at", "--seeds", "0,1", "--run-folder", str(folder / "both")])
            == 0
        )
    return folder


def run_command(capsys, *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def in_browser(path: Path, *options: str) -> subprocess.CompletedProcess:
    """Opens a page in Chromium without a window; its messages are in stderr."""
    if BROWSER is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *options]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    return subprocess.run([*command, profile, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)


def console_lines(opened: subprocess.CompletedProcess) -> list[str]:
    return [line for line in opened.stderr.splitlines() if "CONSOLE" in line]


def test_runs_lists_each_run_with_its_best_epoch(folders, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    printed = run_command(capsys, "runs", folders)
    best = max(read_metrics(folders / "one"), key=lambda row: row["robust_accuracy"])
    (line,) = [line for line in printed.splitlines() if "│ one " in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[:3] == ["one", "finished", "2/2"]
    assert cells[3:5] == [f"{100 * best[name]:.1f}" for name in ("natural_accuracy", "robust_accuracy")]
    assert cells[5].endswith(" ago")
    assert len([line for line in printed.splitlines() if "both/experiments/" in line]) == 2


def test_the_status_follows_the_files_and_the_lock(folders, tmp_path):
    run = Path(shutil.copytree(folders / "one", tmp_path / "one"))
    assert facts_of(run).status == "finished"
    with run_lock(run):
        assert facts_of(run).status == "running"
    (run / "results.csv").unlink()
    assert facts_of(run).status == "not evaluated"
    sorted((run / "checkpoints").iterdir())[-1].unlink()  # the one before it is of the first epoch
    assert (facts_of(run).status, facts_of(run).epoch) == ("stopped", 1)
    assert [*run_folders(tmp_path)] == [run]


def test_an_experiment_without_one_attack_is_not_evaluated(folders, tmp_path):
    both = Path(shutil.copytree(folders / "both", tmp_path / "both"))
    first, *_ = run_folders(both)
    assert facts_of(first).status == "finished"
    next(first.glob("attacks/pgd2_*.json")).unlink()
    assert facts_of(first).status == "not evaluated"


def test_the_report_of_a_run_shows_its_files(folders, capsys):
    assert "report.html" in run_command(capsys, "report", folders / "one")
    text = (folders / "one" / "report.html").read_text()
    with open(folders / "one" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["attack"] for row in rows] == ["natural", "pgd2"]
    for row in rows:
        line = next(line for line in text.splitlines() if f"<tr><td>{row['attack']}</td>" in line)
        assert f">{100 * float(row['accuracy']):.1f}</td>" in line
    last = read_metrics(folders / "one")[-1]
    assert f">{100 * last['teacher_kl_error']:.2f}</td>" in text  # of the policy
    assert "<td>teacher.policy.every</td><td>2</td>" in text
    assert text.count("data:image/png;base64,") == 2  # curves, adversarial images
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_the_report_of_a_comparison_has_its_table_and_the_curves_of_each_run(folders, tmp_path, capsys):
    run_command(capsys, "report", folders / "both", "--output", tmp_path / "both.html")
    text = (tmp_path / "both.html").read_text()
    assert text.count("data:image/png;base64,") == 2 + 2  # table and curves of all, curves of each run
    for line in (folders / "both" / "table.md").read_text().splitlines()[2:4]:
        student, method, *cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        shown = "".join(f'<td class="number">{cell}</td>' for cell in cells[:-1])
        assert f"<tr><td>{student}</td><td>{method}</td>{shown}</tr>" in text


def test_text_of_a_run_cannot_become_html():
    text = page("<script>", [table(["<b>"], [["<img src=x onerror=alert(1)>"]]), picture(b"", '">')]).decode()
    body = text[text.index("<body>") :]
    assert set(re.findall(r"<(\w+)", body)) == {
        "body", "h1", "table", "thead", "tbody", "tr", "th", "td", "p", "img",
    }  # fmt: skip
    assert "&lt;img src=x onerror=alert(1)&gt;" in body


@pytest.mark.parametrize(("name", "num_tables"), [("one", 7), ("both", 2 + 2 * 2 + 1)])
def test_a_browser_shows_the_report_without_an_error(folders, tmp_path, capsys, name, num_tables):
    path = tmp_path / "report.html"
    run_command(capsys, "report", folders / name, "--output", path)
    shot = tmp_path / "shot.png"
    opened = in_browser(path, "--window-size=1100,1600", f"--screenshot={shot}", "--dump-dom")
    assert console_lines(opened) == []
    with Image.open(shot) as image:
        grey = image.convert("L").histogram()
    dark = sum(grey[:128]) / sum(grey)
    assert 0.005 < dark < 0.5  # text and pictures on white
    assert opened.stdout.count("<table>") == opened.stdout.count("</table>") == num_tables


def test_the_browser_reports_what_the_page_refuses(tmp_path):
    path = tmp_path / "bad.html"
    path.write_bytes(page("planted", ["<script>alert(1)</script>"]))
    assert len(console_lines(in_browser(path, "--dump-dom"))) == 1


@pytest.mark.parametrize("command", ["runs", "report"])
def test_a_folder_without_a_run_is_refused(command, tmp_path, capsys):
    assert cli.main([command, str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
