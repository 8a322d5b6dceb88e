"""Settings that a resumed run changes by name, against a run whose settings are changed in the middle."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from stopped_runs import (
    NUM_STEPS,
    StopHereError,
    before_step,
    die,
    long_run,
    printed_by,
    run_until,
    trainer,
    untimed_rows,
    variant,
    weights,
)

from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.training import folders
from fastadaad.training.changes import CHANGEABLE, check_changeable, value_of
from fastadaad.training.checkpoint import (
    CheckpointError,
    checkpoint_paths,
    last_facts,
    read_checkpoint,
    write_checkpoint,
)
from fastadaad.training.schedule import learning_rate
from fastadaad.training.trainer import Trainer

ALLOW = ["optim.learning_rate=0.05", "optim.weight_decay=0.01", "optim.schedule=cosine", "optim.grad_clip=0.5"]
CHANGED = {"learning_rate": 0.05, "weight_decay": 0.01, "schedule": "cosine", "grad_clip": 0.5}


def resumed(config: RunConfig, folder: Path, *allow: str) -> Trainer:
    run = trainer(config, folder)
    return Trainer(config, folder, run.console, resume=True, allow=allow)


def changes_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "changes.csv").open()))


@pytest.mark.slow
def test_a_changed_run_ends_as_one_whose_settings_change_in_the_middle(tmp_path):
    config, whole = long_run(), trainer(long_run(), tmp_path / "whole")
    changed = replace(config, optim=replace(config.optim, **CHANGED))
    take_step = whole.distiller.step

    def step(*arguments, **options):
        if whole.state.step >= 6:
            whole.config, whole.distiller.grad_clip = changed, 0.5
            (group,) = whole.state.optimizer.param_groups
            group["weight_decay"] = 0.01
            group["lr"] = learning_rate(whole.state.step / NUM_STEPS, changed.optim, 64)
        return take_step(*arguments, **options)

    whole.distiller.step = step
    whole.train()
    folder = tmp_path / "stopped"
    run_until(config, folder, step=6)
    resumed(config, folder, *ALLOW).train()
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")
    assert weights(folder) == weights(tmp_path / "whole")
    unchanged = tmp_path / "unchanged"
    run_until(config, unchanged, step=6)
    resumed(config, unchanged).train()
    assert untimed_rows(unchanged) != untimed_rows(folder)


def test_the_change_is_noted_and_later_starts_keep_it(tmp_path):
    config = long_run()
    run_until(config, tmp_path, step=6)
    run = resumed(config, tmp_path, *ALLOW, "optim.warmup=0.25")  # which it has already
    for name, value in CHANGED.items():
        before = json.dumps(getattr(config.optim, name)).strip('"')
        assert f"changed from step 6 on: optim.{name} {before} -> {value}" in printed_by(run)
    before_step(run, 6, die)  # before any checkpoint of its own steps
    with pytest.raises(StopHereError):
        run.train()
    assert [(row["step"], row["setting"], row["after"]) for row in changes_of(tmp_path)] == [
        ("6", f"optim.{name}", str(value)) for name, value in CHANGED.items()
    ]
    again = resumed(config, tmp_path)
    assert again.state.step == 6
    for run_config in (again.config, resumed(again.config, tmp_path).config):  # given as before, or as changed
        assert run_config == replace(config, optim=replace(config.optim, **CHANGED))
    assert again.state.optimizer.param_groups[0]["weight_decay"] == 0.01
    assert again.distiller.grad_clip == 0.5
    assert "changed from" not in printed_by(again)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert {name: saved["optim"][name] for name in CHANGED} == CHANGED

    back = resumed(config, tmp_path, "optim.learning_rate=0.2")
    before_step(back, 7, die)
    with pytest.raises(StopHereError):
        back.train()
    assert [row["after"] for row in changes_of(tmp_path)][-1] == "0.2"
    assert resumed(config, tmp_path).config.optim.learning_rate == 0.2


@pytest.mark.slow
def test_a_finished_run_trains_on_for_more_epochs(tmp_path):
    config = long_run()
    trainer(config, tmp_path).train()
    before = untimed_rows(tmp_path)
    resumed(config, tmp_path, "optim.epochs=4").train()
    assert untimed_rows(tmp_path)[:3] == before
    assert [row[:2] for row in untimed_rows(tmp_path)] == [[1, 4], [2, 8], [3, 12], [4, 16]]
    facts = last_facts(tmp_path)
    assert facts is not None
    assert (facts.finished, facts.epochs) == (True, 4)


def test_epochs_that_are_over_already_are_refused(tmp_path):
    run_until(long_run(), tmp_path, step=6)
    with pytest.raises(ValueError, match=r"epochs is 1, and the run has trained 6 steps of 4 per epoch: allow 2 or"):
        resumed(long_run(), tmp_path, "optim.epochs=1")
    resumed(long_run(), tmp_path, "optim.epochs=2")
    folder = tmp_path / "swa"
    run_until(variant("swa", tmp_path), folder, step=2)
    with pytest.raises(ValueError, match=r"optim.epochs decides when SWA begins"):
        resumed(variant("swa", tmp_path), folder, "optim.epochs=5")


REFUSED = [
    *(
        "seed=1",
        "method=trades",
        "student.name=cnn-6-s1",
        "student.normalize=false",
        "data.name=cifar10",
        "data.batch_size=32",
    ),
    *("data.mixup=0.2", "optim.optimizer=adamw", "optim.momentum=0.5", "optim.ema_decay=0.5", "optim.swa_begin=null"),
    *(
        "method_options.temperature=3",
        "inner.num_steps=3",
        "precision.student=bf16",
        "deterministic=false",
        "device=cpu",
    ),
]


def test_a_setting_that_the_state_depends_on_is_refused_by_name(tmp_path):
    run_until(long_run(), tmp_path, step=2)
    for text in REFUSED:
        name = text.partition("=")[0]
        with pytest.raises(ValueError, match=rf"^(--allow {name}: the state of the run depends|.*has no option 'temp)"):
            resumed(long_run(), tmp_path, text)
        with pytest.raises(ValueError, match=f"^--allow {name}: "):
            check_changeable(name)
    with pytest.raises(CheckpointError, match="belongs to another run: seed 0 -> 1; give"):
        resumed(long_run(seed=1), tmp_path, "optim.epochs=5")
    with pytest.raises(CheckpointError, match=r"belongs to another run: optim.learning_rate 0.2 -> 0.3"):
        resumed(long_run(optim=replace(long_run().optim, learning_rate=0.3)), tmp_path)
    with pytest.raises(ValueError, match="changes a resumed run and there is no checkpoint"):
        resumed(long_run(), tmp_path / "new", "optim.epochs=5")


def test_a_third_value_of_a_changed_setting_is_not_replaced_silently(tmp_path):
    config = long_run()
    run_until(config, tmp_path, step=2)
    run = resumed(config, tmp_path, "optim.learning_rate=0.05")
    before_step(run, 2, die)
    with pytest.raises(StopHereError):
        run.train()
    third = replace(config, optim=replace(config.optim, learning_rate=0.3))
    with pytest.raises(
        ValueError, match=r"learning_rate is 0.3, and the run changed it from 0.2 to 0.05: leave .* --allow optim"
    ):
        resumed(third, tmp_path)


def test_a_changed_run_is_found_in_the_folder_of_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "RUNS", tmp_path)
    config, folder = long_run(), tmp_path / "changed"
    run_until(config, folder, step=2)
    run = resumed(config, folder, "optim.learning_rate=0.05")
    before_step(run, 2, die)
    with pytest.raises(StopHereError):
        run.train()
    assert folders.choose_run_folder(None, config, resume=True) == folder
    third = replace(config, optim=replace(config.optim, learning_rate=0.3))
    assert folders.choose_run_folder(None, third, resume=True) != folder


@pytest.mark.parametrize(
    "changes", ["x", [1], [{"setting": "seed"}], [{"step": 1, "setting": "seed", "before": 0, "after": 1}]]
)
def test_changes_of_an_untrusted_checkpoint_are_checked(tmp_path, changes):
    run_until(long_run(), tmp_path, step=2)
    checkpoint = read_checkpoint(checkpoint_paths(tmp_path)[0])
    object.__setattr__(checkpoint.facts, "changes", changes)
    for path in checkpoint_paths(tmp_path):
        path.unlink()
    write_checkpoint(tmp_path, 2, checkpoint.facts, checkpoint.state)
    with pytest.raises(ValueError, match=r"no checkpoint|none .* can be used|--allow seed: the state"):
        resumed(long_run(), tmp_path)


def test_every_changeable_setting_exists_and_has_a_value():
    config = long_run(optim=OptimConfig(epochs=3))
    for name in CHANGEABLE:
        value_of(config, name)
