"""A run that is stopped and resumed ends as an uninterrupted one: weights, rows and files."""

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stopped_runs import (
    NUM_STEPS,
    VARIANTS,
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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import save_teacher

from fastadaad.config import PrecisionConfig
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.files import TEMPORARY
from fastadaad.runtime.locks import locked
from fastadaad.runtime.signals import Interrupted
from fastadaad.training.checkpoint import CheckpointError, checkpoint_paths, read_checkpoint
from fastadaad.training.fingerprint import DATA, training_facts, versions
from fastadaad.training.folders import choose_run_folder
from fastadaad.training.log import read_metrics
from fastadaad.training.resume import check_same_run


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:teacher policy:UserWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_died_in_the_middle_of_an_epoch_ends_bitwise_as_an_uninterrupted_one(tmp_path, name):
    config = variant(name, tmp_path)
    trainer(config, tmp_path / "whole").train()
    run_until(config, tmp_path / "stopped", step=6)
    resumed = trainer(config, tmp_path / "stopped", resume=True)
    assert resumed.state.step == 6
    resumed.train()
    assert "epoch 2 of 3, step 6" in printed_by(resumed)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert untimed_rows(tmp_path / "stopped") == untimed_rows(tmp_path / "whole")


LATER = {
    "data": {"mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "auto_augment": "randaugment"},
    "optim": {"grad_clip": 1.0},
    "student": {"prefix": "student"},
}


@pytest.mark.parametrize(("section", "name"), [(section, name) for section in LATER for name in LATER[section]])
def test_settings_that_came_later_change_the_facts_of_a_run_only_if_they_are_used(section, name):
    """A run of before keeps its name in a comparison, and can be resumed."""
    config = long_run()
    config = replace(config, data=replace(config.data, engine="torch"))  # which runs all of them
    changed = replace(config, **{section: replace(getattr(config, section), **{name: LATER[section][name]})})
    assert name not in training_facts(config)[section]
    assert training_facts(changed)[section][name] == LATER[section][name]


@pytest.mark.slow
def test_a_run_may_die_at_every_step(tmp_path):
    """Each process gets one step further, so that one dies and another one resumes at every step."""
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    for step in range(1, NUM_STEPS):
        run = trainer(config, folder, resume=True)
        before_step(run, step, die)
        with pytest.raises(StopHereError):
            run.train()
    trainer(config, folder, resume=True).train()
    assert weights(folder) == weights(tmp_path / "whole")
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")
    assert len(checkpoint_paths(folder)) == 2
    last = read_metrics(folder)[-1]
    assert last["images_per_s"] * last["seconds"] == pytest.approx(NUM_STEPS * config.data.batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["metrics.csv", "last.safetensors", "best.safetensors", "checkpoint"])
def test_a_run_may_die_while_it_writes(tmp_path, monkeypatch, victim):
    """Dies between two files at the end of an epoch: the resumed run writes the missing ones."""
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    if victim == "checkpoint":
        replace_file = os.replace

        def replace_or_die(source, target):
            if "step-000000008" in str(target):
                die()
            replace_file(source, target)

        monkeypatch.setattr(os, "replace", replace_or_die)
    else:
        write = run._files.write

        def write_or_die(path, content):
            if path.name == victim and run.state.epoch == 1:
                die()
            write(path, content)

        monkeypatch.setattr(run._files, "write", write_or_die)
    with pytest.raises(StopHereError):
        run.train()
    monkeypatch.undo()
    trainer(config, folder, resume=True).train()
    assert weights(folder) == weights(tmp_path / "whole")
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")
    assert not list((folder / "checkpoints").glob("*.tmp"))


def test_tensorboard_shows_an_epoch_that_was_trained_twice_only_once(tmp_path):
    config = long_run(checkpoint_every=100)
    run_until(config, tmp_path, step=10)
    os.truncate(checkpoint_paths(tmp_path)[0], 1000)  # the second epoch is trained again
    trainer(config, tmp_path, resume=True).train()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [4, 8, 12]


def test_a_folder_without_a_checkpoint_starts_a_run_with_a_message(tmp_path):
    run = trainer(long_run(), tmp_path / "new", resume=True)
    assert "has no checkpoint: the run starts from its beginning" in printed_by(run)
    assert run.state.step == 0


def test_another_configuration_or_teacher_is_refused_with_the_differences(tmp_path):
    config = variant("adaad", tmp_path)
    run_until(config, tmp_path / "run", step=6)
    changed = replace(
        config,
        seed=1,
        optim=replace(config.optim, epochs=5),
        teacher=save_teacher(tmp_path / "other.safetensors", seed=1),
    )
    with pytest.raises(CheckpointError) as refused:
        trainer(changed, tmp_path / "run", resume=True)
    for difference in ("seed 0 -> 1", "optim.epochs 3 -> 5", "teacher.checkpoint has other contents"):
        assert difference in str(refused.value)
    assert "learning_rate" not in str(refused.value)
    assert "\n" not in str(refused.value)
    # Settings that change no weight may differ.
    other = replace(config, log_every=1, checkpoint_every=50, on_nonfinite="skip", teacher_check=0)
    assert trainer(other, tmp_path / "run", resume=True).state.step == 6


def test_other_images_are_refused(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr("fastadaad.training.trainer.dataset_digest", lambda dataset: "another")
    with pytest.raises(CheckpointError, match="data_sha256 has other contents"):
        trainer(long_run(), tmp_path, resume=True)


def test_other_extra_images_in_the_same_file_are_refused(tmp_path):
    path = tmp_path / "extra.npz"
    config = replace(long_run(), data=replace(long_run().data, extra_images=str(path)))
    images = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), dtype=np.uint8)
    np.savez(path, image=images, label=np.arange(300) % 10)
    run_until(config, tmp_path / "run", step=2)
    assert trainer(config, tmp_path / "run", resume=True).state.step == 2
    np.savez(path, image=images[::-1], label=np.arange(300) % 10)
    with pytest.raises(CheckpointError, match="data_sha256 has other contents"):
        trainer(config, tmp_path / "run", resume=True)


def test_another_version_is_reported(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    now = versions()
    monkeypatch.setattr("fastadaad.training.resume.versions", lambda: now | {"torch": "9.9"})
    resumed = trainer(long_run(), tmp_path, resume=True)
    assert "may differ in rounding" in printed_by(resumed)
    assert "-> 9.9" in printed_by(resumed)


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    trainer(long_run(), tmp_path).train()
    before = weights(tmp_path)
    for folder in (tmp_path, tmp_path / "checkpoints"):
        (folder / f"last.safetensors.123{TEMPORARY}").touch()  # of a process that was killed
        (folder / "another program's.tmp").touch()
    run = trainer(long_run(), tmp_path, resume=True)
    assert {path.name for path in tmp_path.rglob("*.tmp")} == {"another program's.tmp"}
    run.distiller.step = None
    result = run.train()
    assert weights(tmp_path) == before
    assert result.best_epoch in (1, 2, 3)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_deterministic_run_has_deterministic_algorithms_and_no_measured_layout(tmp_path):
    enabled = []
    for deterministic in (True, False):
        run = trainer(long_run(deterministic=deterministic), tmp_path / str(deterministic))
        assert (run.distiller.maximizer.layout == "contiguous") == deterministic
        before_step(run, 1, lambda: enabled.append(torch.are_deterministic_algorithms_enabled()))
        before_step(run, 2, die)
        with pytest.raises(StopHereError):
            run.train()
    assert enabled == [True, False]
    assert not torch.are_deterministic_algorithms_enabled()


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = trainer(long_run(), tmp_path)
    written = tmp_path / "checkpoints" / f"step-000000006.safetensors.1{TEMPORARY}"  # the first process writes it now
    seen = []

    def start_another() -> None:
        written.touch()
        with pytest.raises(ValueError, match=f"another process trains in {tmp_path}: wait"):
            trainer(long_run(), tmp_path, resume=True).train()
        seen.append(read_metrics(tmp_path))
        written.unlink()

    before_step(run, 6, start_another)
    run.train()
    assert len(seen[0]) == 1
    with locked(tmp_path) as own:
        assert own


def test_a_run_that_was_overtaken_leaves_the_other_run_alone(tmp_path):
    """It looked into the folder when that was empty, or when it had an earlier checkpoint."""
    early = trainer(long_run(), tmp_path)
    run_until(long_run(), tmp_path, step=6)
    resumed = trainer(long_run(), tmp_path, resume=True)
    trainer(long_run(), tmp_path, resume=True).train()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for overtaken in (early, resumed):
        with pytest.raises(ValueError, match=r"another process has trained in .* meanwhile: add --resume to go on"):
            overtaken.train()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_trainer_trains_on_after_it_was_stopped(tmp_path):
    """Its own checkpoints are not another process's."""
    run = trainer(long_run(), tmp_path)
    before_step(run, 6, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        run.train()
    run.train()
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("config", ['{"architectures": ["ViTModel"]}', '{"recipe": "tiny"}', "{}", "[]", "", "{"])
def test_a_folder_of_another_program_is_left_alone(tmp_path, config):
    """Its config.json has the name of ours."""
    files = {"config.json": config, "last.safetensors": "weights", "lock.tmp": "", "metrics.csv": "loss"}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"exists already: give another --run-folder"):
        choose_run_folder(str(tmp_path), long_run(), resume=True)
    with pytest.raises(ValueError, match=r"holds another program.s config\.json"):
        trainer(long_run(), tmp_path, resume=True).train()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == files


def test_runs_that_start_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastadaad.training.folders.time.strftime", lambda form: "2026-01-01_00-00-00")
    folders = [choose_run_folder(None, long_run(), resume=False) for _ in range(3)]
    first = "2026-01-01_00-00-00_tiny_pgd-at_seed0"
    assert [folder.name for folder in folders] == [first, f"{first}_2", f"{first}_3"]


def test_a_run_whose_latest_checkpoint_is_damaged_is_found_by_its_earlier_one(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/2026-01-01_tiny")
    run_until(long_run(), folder, step=6)
    os.truncate(checkpoint_paths(folder)[0], 1000)
    assert choose_run_folder(None, long_run(), resume=True) == folder
    caplog.clear()
    with caplog.at_level("INFO", logger="fastadaad"):
        assert choose_run_folder(None, long_run(), resume=False) != folder
    assert caplog.messages == [
        f"{folder} has the same run, not finished, 1 of 3 epochs trained: add --resume to resume it"
    ]
    with pytest.raises(ValueError, match="it has a run, not finished"):
        choose_run_folder(str(folder), long_run(), resume=False)


def test_a_run_that_died_before_its_first_step_can_be_resumed(tmp_path, monkeypatch):
    config = long_run(precision=PrecisionConfig(student="bf16"))
    with monkeypatch.context() as dying:
        dying.setattr("fastadaad.training.log.write_atomically", lambda path, content: die())
        with pytest.raises(StopHereError):
            trainer(config, tmp_path / "run").train()
    assert choose_run_folder(str(tmp_path / "run"), config, resume=True) == tmp_path / "run"


def test_every_generator_continues_from_its_state(tmp_path, monkeypatch):
    """A student that draws from Python's, numpy's and torch's generators at each step resumes bitwise."""

    def train(folder: Path, die_at: int | None, resume: bool = False) -> list[tuple]:
        draws: list[tuple] = []
        run = trainer(long_run(), folder, resume=resume)
        take_step = run.distiller.step

        def draw_and_step(*arguments, **options):
            if run.state.step == die_at:
                die()
            draws.append((random.random(), np.random.rand(), torch.rand(()).item()))
            return take_step(*arguments, **options)

        run.distiller.step = draw_and_step
        if die_at is None:
            run.train()
        else:
            with pytest.raises(StopHereError):
                run.train()
        return draws

    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    whole = train(tmp_path / "whole", None)
    random.seed(99)
    before = random.getstate()
    parts = train(tmp_path / "parts", 5) + train(tmp_path / "parts", None, resume=True)
    assert parts == whole
    assert len(set(whole)) == NUM_STEPS
    assert random.getstate() == before
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_run_on_hardware_with_another_auto_precision_is_not_resumed(tmp_path, monkeypatch):
    """A checkpoint holds the resolved precision, so auto refuses to continue in another arithmetic."""
    config = long_run()
    assert config.precision == PrecisionConfig(student="auto", teacher="auto")
    run_until(config, tmp_path / "run", step=3)
    (saved,) = {str(read_checkpoint(path).facts.run["precision"]) for path in checkpoint_paths(tmp_path / "run")}
    assert saved == "{'student': 'fp32', 'teacher': 'fp32'}"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("fastadaad.training.fingerprint.resolve_device", lambda name: torch.device("cuda"))
        elsewhere.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        on_gpu = training_facts(config)
    assert on_gpu["precision"] == {"student": "bf16", "teacher": "bf16"}
    (checkpoint, *_) = map(read_checkpoint, checkpoint_paths(tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"precision\.student fp32 -> bf16, precision\.teacher") as error:
        check_same_run(checkpoint, on_gpu | {DATA: checkpoint.facts.run[DATA]}, ProcessGroup())
    assert "(precision.student=fp32 precision.teacher=fp32; precision auto depends" in str(error.value)
    trainer(replace(config, precision=PrecisionConfig.parse("fp32")), tmp_path / "run", resume=True)
