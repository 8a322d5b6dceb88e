"""Experiments of a comparison: finished work is kept, changed settings are run, and two processes share the work."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tiny_runs import save_teacher, tiny_run

from fastadaad.cli.comparison import experiment as experiment_module
from fastadaad.cli.comparison.experiment import Experiment, experiment_lock, finish
from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training.fingerprint import training_facts

QUIET = Console(file=io.StringIO())


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return tiny_run(method="adaad", teacher=save_teacher(tmp_path / "teacher.safetensors"))


def experiment(config: RunConfig, tmp_path: Path, **options) -> Experiment:
    return Experiment(config, tmp_path / "experiments", label=config.method, **options)


@pytest.fixture
def work(monkeypatch) -> list[str]:
    """Returns a list that grows by "train" and the names of attacks as they run."""
    done: list[str] = []
    train, evaluate = experiment_module.Trainer.train, experiment_module.evaluate_on_test_set

    def spy_on_train(self):
        done.append("train")
        return train(self)

    def spy_on_evaluate(model, config, *arguments, **options):
        done.extend(config.evaluation.attacks)
        return evaluate(model, config, *arguments, **options)

    monkeypatch.setattr(experiment_module.Trainer, "train", spy_on_train)
    monkeypatch.setattr(experiment_module, "evaluate_on_test_set", spy_on_evaluate)
    return done


def test_a_finished_experiment_is_read_and_not_run_again(config, tmp_path, work):
    first = experiment(config, tmp_path)
    assert not first.is_finished
    finish([first], QUIET)
    assert work == ["train", "natural", "pgd2"]
    again = experiment(config, tmp_path)
    finish([again], QUIET)
    assert work == ["train", "natural", "pgd2"]
    assert (again.training, again.results) == (first.training, first.results)


TRAINING = {"best_epoch": 1, "images_per_s": 2.5, "seconds": 3}
RESULT = {
    "attack": "natural", "restarts": 1, "norm": "linf", "epsilon": 0.1, "num_images": 150, "accuracy": 0.5,
    "seconds": 1.0, "parts": [["a", 0.5, 1.0]], "notes": ["b"],
}  # fmt: skip
DAMAGED = [b"", b"[]", b"[" * 100_000, b"\xff", b"{}", b"null"]


@pytest.mark.parametrize(
    "content",
    [*DAMAGED, *(TRAINING | change for change in ({"best_epoch": "1"}, {"seconds": None}, {"more": 1}))],
    ids=str,
)
def test_a_damaged_training_is_named(config, tmp_path, content):
    tested = experiment(config, tmp_path)
    tested.folder.mkdir(parents=True)
    path = tested.folder / "training.json"
    path.write_text(json.dumps(TRAINING))
    assert tested.training == experiment_module.Training(best_epoch=1, images_per_s=2.5, seconds=3.0)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"^{path} cannot be read \(.*\): delete {tested.folder}, and it is trained"):
        tested.is_finished  # noqa: B018


CHANGES = (
    {"accuracy": 1.5},
    {"accuracy": "high"},
    {"num_images": 0},
    {"parts": [[1, 2]]},
    {"attack": "fgsm"},
    {"epsilon": 0.2},
)


@pytest.mark.parametrize("content", [*DAMAGED, *(RESULT | change for change in CHANGES)], ids=str)
def test_a_damaged_result_is_named(config, tmp_path, content):
    tested = experiment(config, tmp_path)
    path = tested._result_path("natural")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(RESULT))
    assert tested.result("natural").accuracy == 0.5
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(
        ValueError, match=f"^{path} (cannot be read|has the result of).*: delete it, and the attack runs"
    ):
        tested.results  # noqa: B018


def test_a_new_attack_does_not_train_again_and_a_new_evaluation_set_attacks_again(config, tmp_path, work):
    finish([experiment(config, tmp_path)], QUIET)
    work.clear()
    more = replace(config, evaluation=replace(config.evaluation, attacks=("natural", "fgsm", "pgd2")))
    finish([experiment(more, tmp_path)], QUIET)
    assert work == ["fgsm"]
    work.clear()
    finish([experiment(replace(config, evaluation=replace(config.evaluation, num_images=100)), tmp_path)], QUIET)
    assert work == ["natural", "pgd2"]


def test_experiments_differ_in_the_settings_that_change_the_weights(config, tmp_path):
    folder = experiment(config, tmp_path).folder
    other_teacher = save_teacher(tmp_path / "other.safetensors", seed=1)
    for change in (
        {"seed": 1},
        {"optim": OptimConfig(epochs=3)},
        {"method_options": {"clean_statistics": False}},
        {"teacher": other_teacher},
        {"teacher": replace(config.teacher, prefix="model")},
        {"evaluation": replace(config.evaluation, validation_attack="pgd3")},
    ):
        assert experiment(replace(config, **change), tmp_path).folder != folder, change
    for change in (
        {"log_every": 7},
        {"data": replace(config.data, root="elsewhere")},
        {"evaluation": replace(config.evaluation, attacks=("fgsm",), restarts=3, num_images=10, batch_size=7)},
    ):
        assert experiment(replace(config, **change), tmp_path).folder == folder, change


def test_a_method_without_a_teacher_does_not_depend_on_it(config, tmp_path):
    other = replace(config, teacher=save_teacher(tmp_path / "other.safetensors", seed=1))
    plain = [experiment(replace(each, method="pgd-at"), tmp_path).folder for each in (config, other)]
    assert plain[0] == plain[1]
    assert training_facts(config)["teacher"] != training_facts(other)["teacher"]


def test_an_unfinished_training_is_deleted_and_started_again(config, tmp_path, work):
    student = experiment(config, tmp_path)
    student.folder.mkdir(parents=True)
    (student.folder / "best.safetensors").write_text("half a run")
    finish([student], QUIET)
    assert work == ["train", "natural", "pgd2"]
    assert student.training.best_epoch in (1, 2)


def test_a_teacher_is_evaluated_and_not_trained(config, tmp_path, work):
    teacher = experiment(config, tmp_path, is_teacher=True)
    finish([teacher], QUIET)
    assert work == ["natural", "pgd2"]
    other = replace(config, teacher=replace(config.teacher, prefix="model"))
    assert experiment(other, tmp_path, is_teacher=True).folder != teacher.folder
    assert teacher.training is None
    assert teacher.is_finished


def test_an_experiment_that_another_process_runs_is_waited_for(config, tmp_path, work, monkeypatch):
    """Holds the lock by another open file, as another process would, until the first sleep."""
    busy, free = experiment(config, tmp_path), experiment(replace(config, seed=1), tmp_path)
    holder = experiment_lock(busy.folder)
    assert holder.__enter__()
    sleeps = []

    def release(seconds):
        sleeps.append(seconds)
        holder.__exit__(None, None, None)

    monkeypatch.setattr(experiment_module.time, "sleep", release)
    finish([busy, free], QUIET)
    assert busy.is_finished
    assert free.is_finished
    assert len(sleeps) == 1
    assert work == 2 * ["train", "natural", "pgd2"]
    assert free.folder.stat().st_mtime <= busy.folder.stat().st_mtime


@pytest.mark.slow
def test_a_comparison_killed_with_signal_9_resumes(tmp_path):
    """Kills the process after two experiments; the second call repeats neither."""
    words = ["compare", "demo", "--methods", "pgd-at,trades,adaad", "--attacks", "natural"]
    words += ["optim.epochs=2", "data.num_samples=128", "evaluation.num_images=60", "--run-folder", str(tmp_path)]
    command = [sys.executable, "-m", "fastadaad", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)

    def results() -> dict[str, int]:
        return {path.parts[-3]: path.stat().st_mtime_ns for path in tmp_path.glob("experiments/*/attacks/*.json")}

    while len(results()) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = results()
    assert 2 <= len(finished) < 4
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    assert len(results()) == 4
    assert results().items() >= finished.items()  # untouched since
    lines = (tmp_path / "results.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == ["teacher", "pgd-at", "trades", "adaad"]
