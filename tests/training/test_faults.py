"""Runs that are killed, stopped, or lose their disk: each ends bitwise as an undisturbed run."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

import forked_runs
import pytest

from bench import faults
from bench.faults import undisturbed
from bench.faults_disk import FLIPPED, FULL, READ_ONLY, TRUNCATED, disk_faults, flip_a_bit, small_disk
from bench.faults_forks import ForkedChild
from bench.faults_moments import SAVING, TRAINING, Plan, kills
from bench.faults_run import RUNS, WORDS, Fault, Process, Struck, differences, step_of, under_faults, untimed_rows
from fastadaad.cli import main
from fastadaad.training.checkpoint import checkpoint_paths

NUM_KILLS = 25


class Whole(NamedTuple):
    """An undisturbed run."""

    folder: Path
    plan: Plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Whole:
    place = tmp_path_factory.mktemp("whole")
    ForkedChild(int, place / "nothing.txt").wait()  # imports of the server do not count in the plan
    folder = place / "run"
    return Whole(folder, undisturbed(start(), folder))


def start(train=forked_runs.train):
    """Returns the function with which under_faults starts its processes."""
    return lambda folder, output: ForkedChild(train, output, folder)


def struck(place: Path, whole: Whole, faults: list[Fault], train=forked_runs.train) -> list[Struck]:
    return under_faults(start(train), place, whole.folder, deque(faults), print)


@pytest.mark.slow
def test_every_kill_is_survived(tmp_path, whole):
    found = struck(tmp_path, whole, kills(NUM_KILLS, signal.SIGKILL, whole.plan, seed=0))
    assert len(found) == NUM_KILLS
    assert [each for each in found if not each.survived] == []
    moments = Counter(each.name for each in found)
    # A third of the kills is aimed at a save; a leftover temporary file or an extra checkpoint proves a hit.
    assert moments[SAVING] >= 4, moments
    assert moments[TRAINING] >= 1, moments
    assert max(each.step for each in found) > whole.plan.steps_per_epoch


@pytest.mark.slow
def test_every_sigterm_is_obeyed_and_survived(tmp_path, whole):
    found = struck(tmp_path, whole, kills(8, signal.SIGTERM, whole.plan, seed=1))
    assert len(found) == 8
    assert [each for each in found if not each.survived] == []


@pytest.mark.slow
def test_faults_of_the_disk_are_survived(tmp_path, whole):
    with small_disk(tmp_path / RUNS) as can_mount:
        found = struck(tmp_path, whole, disk_faults(2, tmp_path / RUNS, whole.plan, seed=0, can_mount=can_mount))
    names = [FULL, READ_ONLY] * can_mount + [TRUNCATED, FLIPPED]
    assert [each.name for each in found] == 2 * names
    assert [each for each in found if not each.survived] == []


@pytest.mark.parametrize(
    ("train", "went_on", "equal"),
    [
        (forked_runs.train_without_momentum, True, False),
        (forked_runs.train_from_the_checkpoint_before, False, True),
        (forked_runs.train_without_resuming, False, False),
    ],
)
def test_a_program_that_loses_state_is_detected(tmp_path, whole, train, went_on, equal):
    (found,) = struck(tmp_path, whole, [Fault(strike=kill_at_step_5)], train)
    assert (found.step >= 5, found.went_on, found.equal, found.survived) == (True, went_on, equal, False)


def kill_at_step_5(process: Process) -> str | None:
    if not process.wait_for(lambda: any(step_of(path) >= 5 for path in checkpoint_paths(process.folder))):
        return None
    process.child.send_signal(signal.SIGKILL)
    return "killed" if process.exit_code() == -signal.SIGKILL else None


def test_differences_are_named(tmp_path, whole):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    metrics = folder / "metrics.csv"
    header, first, *rest = metrics.read_text().splitlines()
    timed = header.split(",").index("images_per_s")
    cells = first.split(",")
    cells[timed] = "12345"
    metrics.write_text("\n".join([header, ",".join(cells), *rest]))
    assert differences(whole.folder, folder) == []
    metrics.write_text("\n".join([header, first, first, *rest]))
    flip_a_bit(folder / "best.safetensors", random.Random(0))
    (folder / "checkpoints" / "step-9.safetensors.tmp").touch()
    assert differences(whole.folder, folder) == [
        "best.safetensors differs",
        "metrics.csv differs",
        "checkpoints/step-9.safetensors.tmp is left",
    ]


@pytest.mark.parametrize("num_equal", [1, 2])
def test_the_command_counts_survivors_and_fails_if_a_run_did_not_survive(tmp_path, monkeypatch, capsys, num_equal):
    struck = [
        Struck(name=SAVING, step=3, ended_well=True, went_on=True, equal=index < num_equal, run=index + 1)
        for index in range(2)
    ]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(
        faults, "measure_signals", lambda options, *others: [faults.rows(struck, "SIGKILL", options.seed)]
    )
    words = ["--seed", "5", "--groups", "signals", "--output", str(tmp_path / "faults.csv")]
    if num_equal == len(struck):
        faults.main(words)
    else:
        with pytest.raises(SystemExit, match="1"):
            faults.main(words)
    assert f"{num_equal} survived / 2 tried" in capsys.readouterr().out
    (row,) = untimed_rows(tmp_path / "faults.csv")
    counts = [row[name] for name in ("fault", "tried", "went_on", "equal", "survived", "runs", "seed")]
    assert counts == [SAVING, "2", "2", str(num_equal), str(num_equal), "2", "5"]


def test_a_folder_with_a_run_is_refused_without_resume(tmp_path, whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")}
    assert main(["train", *WORDS, "--run-folder", str(whole.folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert (
        f"{whole.folder} exists already: it has a run, finished, 4 of 4 epochs trained; to resume it, add --resume"
        in error
    )
    assert {path: path.stat().st_mtime_ns for path in whole.folder.rglob("*")} == before


def command(place: Path, *words: str) -> subprocess.Popen:
    """Starts the command line in a new interpreter, in the folder `place`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300", "PYTHONPATH": str(Path(__file__).parents[2])}
    words = (sys.executable, "-m", "fastadaad", "train", *words)
    return subprocess.Popen(
        words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def line_with(process: subprocess.Popen, text: str) -> str:
    """Returns the first printed line with `text`."""
    found = next((line for line in process.stdout if text in line), None)
    assert found is not None, process.communicate()[1]
    return found


@pytest.mark.slow
def test_the_command_line_stops_reports_the_unfinished_run_and_resumes_it(tmp_path, whole):
    first = command(tmp_path, *WORDS)
    line_with(first, "eager mode on cpu")
    first.send_signal(signal.SIGTERM)
    error = first.communicate()[1]
    assert first.returncode == 143
    assert re.fullmatch(r"fastadaad: stopped in epoch \d of 4, step \d+, and saved; .*--resume.*\n", error)
    (folder,) = (tmp_path / "runs").iterdir()

    again = command(tmp_path, *WORDS)
    found = line_with(again, "has the same run, not finished")
    again.kill()
    again.communicate()
    assert found.startswith(f"{folder.relative_to(tmp_path)} has")
    assert "add --resume to resume it" in found
    for other in set((tmp_path / "runs").iterdir()) - {folder}:
        shutil.rmtree(other)

    resumed = command(tmp_path, *WORDS, "--resume")
    line_with(resumed, f"resuming from {folder.relative_to(tmp_path)}")
    error = resumed.communicate()[1]
    assert (resumed.returncode, error) == (0, "")
    assert differences(whole.folder, folder) == []


@pytest.mark.slow
def test_a_second_sigint_exits_at_once(tmp_path):
    """The signal comes in a step that would take hours."""
    process = command(tmp_path, *WORDS, "inner.num_steps=100000000")
    line_with(process, "eager mode on cpu")
    process.send_signal(signal.SIGINT)
    line_with(process, "SIGINT: finishing the step and saving; once more to stop at once")
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert (process.returncode, error) == (130, "fastadaad: interrupted; what was saved so far is complete\n")
    assert list(tmp_path.rglob("*.safetensors")) == []
