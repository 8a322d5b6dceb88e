"""A run that is stopped and goes on ends as one that was not: weights, rows and files."""

import io
import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny_runs import save_teacher, tiny_run

from fastadaad import run_checkpoint
from fastadaad.config import OptimConfig, RunConfig, TeacherPolicy
from fastadaad.interruption import Interrupted
from fastadaad.locks import locked
from fastadaad.run_checkpoint import CheckpointError, checkpoint_paths, last_checkpoint, read_checkpoint
from fastadaad.run_facts import versions
from fastadaad.run_log import read_metrics
from fastadaad.trainer import Trainer
from fastadaad.training_state import NUMBERS

NUM_STEPS = 12  # three epochs of four


class StopHereError(Exception):
    """As far as the run's files are concerned, a process that is killed."""


def long_run(**changes) -> RunConfig:
    """Three epochs with everything that a checkpoint has to hold: momentum, an average, a checkpoint at each step."""
    optim = OptimConfig(epochs=3, learning_rate=0.2, schedule="one-cycle", warmup=0.25, nesterov=True, ema_decay=0.9)
    return tiny_run(**{"optim": optim, "deterministic": True, "checkpoint_every": 1} | changes)


def trainer(config: RunConfig, folder: Path, *, resume: bool = False) -> Trainer:
    return Trainer(config, folder, Console(file=io.StringIO(), width=200), resume=resume)


def said(run: Trainer) -> str:
    return run.console.file.getvalue()


def before_step(run: Trainer, step: int, act: Callable[[], None]) -> None:
    """Let `act` happen when the run is about to take optimiser step `step`, counted from 0."""
    take_step = run.distiller.step

    def step_after_act(*arguments, **options):
        if run.state.step == step:
            act()
        return take_step(*arguments, **options)

    run.distiller.step = step_after_act


def die() -> None:
    raise StopHereError


def run_until(config: RunConfig, folder: Path, step: int) -> None:
    """Train until `step`, then fall dead."""
    run = trainer(config, folder)
    before_step(run, step, die)
    with pytest.raises(StopHereError):
        run.train()


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("last.safetensors", "best.safetensors")}


UNTIMED = ("epoch", "step", "learning_rate", "train_loss", "natural_accuracy", "robust_accuracy")


def untimed_rows(folder: Path) -> list[list[float]]:
    return [[row[name] for name in UNTIMED] for row in read_metrics(folder)]


VARIANTS = {
    "ema": {},
    "swa": {"optim": OptimConfig(epochs=3, learning_rate=0.2, swa_begin=0.3)},
    "lamb": {"optim": OptimConfig(epochs=3, optimizer="lamb", learning_rate=0.01)},
    "lars": {"optim": OptimConfig(epochs=3, optimizer="lars", learning_rate=1.0, awp_gamma=0.005, awp_begin=1)},
    "adaad": {"method": "adaad"},
    "adaptive": {"method": "adaad", "policy": TeacherPolicy(kind="refreshed")},
    "adaiad": {"method": "adaiad", "method_options": {"introspection_begin": 1}},
}


def variant(name: str, folder: Path) -> RunConfig:
    changes = dict(VARIANTS[name])
    policy = changes.pop("policy", TeacherPolicy())
    if "method" in changes:
        changes["teacher"] = replace(save_teacher(folder / "teacher.safetensors"), policy=policy)
    return long_run(**changes)


@pytest.mark.filterwarnings("ignore:teacher policy:UserWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_died_in_the_middle_of_an_epoch_ends_bitwise_as_one_that_did_not(tmp_path, name):
    config = variant(name, tmp_path)
    trainer(config, tmp_path / "whole").train()
    run_until(config, tmp_path / "stopped", step=6)
    resumed = trainer(config, tmp_path / "stopped", resume=True)
    assert resumed.state.step == 6
    resumed.train()
    assert "epoch 2 of 3, step 6" in said(resumed)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert untimed_rows(tmp_path / "stopped") == untimed_rows(tmp_path / "whole")


def test_a_run_may_die_at_every_step(tmp_path):
    """Each process of the run gets one step further, so every position is a place where one dies and one begins."""
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


@pytest.mark.parametrize("victim", ["metrics.csv", "last.safetensors", "best.safetensors", "checkpoint"])
def test_a_run_may_die_while_it_writes(tmp_path, monkeypatch, victim):
    """Between two files of the end of an epoch: what was not written is written when the run goes on."""
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_saves_and_the_run_goes_on(tmp_path, number, code):
    config = replace(long_run(), checkpoint_every=100)
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run = trainer(config, folder)
    before_step(run, 5, lambda: signal.raise_signal(number))
    with pytest.raises(
        Interrupted, match=r"^stopped in epoch 2 of 3, step 6, and saved; start it again to go on"
    ) as stopped:
        run.train()
    assert stopped.value.exit_code == code
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert [path.name for path in checkpoint_paths(folder)] == [
        "step-000000006.safetensors",
        "step-000000004.safetensors",
    ]
    trainer(config, folder, resume=True).train()
    assert weights(folder) == weights(tmp_path / "whole")


def test_a_signal_during_the_validation_keeps_the_epoch(tmp_path, monkeypatch):
    config = replace(long_run(), checkpoint_every=100)
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    average = run._average_epoch
    monkeypatch.setattr(run, "_average_epoch", lambda: (average(), signal.raise_signal(signal.SIGTERM)))
    with pytest.raises(Interrupted):
        run.train()
    resumed = trainer(config, folder, resume=True)
    assert (resumed.state.epoch, resumed.state.step, resumed.state.rows) == (1, 4, [])
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")


def test_workers_that_ctrl_c_reaches_too_say_nothing_and_the_step_is_finished(tmp_path, capfd):
    """Of the engine torch, whose processes inherit what their parent does with signals."""
    config = long_run()
    config = replace(config, data=replace(config.data, engine="torch"), checkpoint_every=100)
    run = Trainer(config, tmp_path, Console(width=200))  # on the output that the workers have too

    def press() -> None:
        workers = multiprocessing.active_children()
        assert workers
        for worker in workers:
            os.kill(worker.pid, signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before_step(run, 5, press)
    with pytest.raises(Interrupted, match="step 6"):
        run.train()
    assert capfd.readouterr().out.count("SIGINT: finishing the step") == 1


def test_a_signal_after_the_last_epoch_is_heard(tmp_path, monkeypatch):
    run = trainer(long_run(), tmp_path)
    monkeypatch.setattr(run, "_report_skipped_images", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped after the last epoch, and saved"):
        run.train()
    assert len(read_metrics(tmp_path)) == 3
    again = trainer(long_run(), tmp_path, resume=True)
    assert "going on from" in said(again)
    assert ": finished" in said(again)


def test_a_checkpoint_without_something_that_is_kept_now_is_refused(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr("fastadaad.training_state.NUMBERS", (*NUMBERS, "something new"))
    with pytest.raises(
        CheckpointError, match=r"has not what this version keeps \('something new'\): go on with the version"
    ):
        trainer(long_run(), tmp_path, resume=True)


def test_a_second_sigint_stops_at_once(tmp_path):
    run = trainer(replace(long_run(), checkpoint_every=100), tmp_path)

    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before_step(run, 2, press_twice)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.state.step == 2
    assert not checkpoint_paths(tmp_path)


def test_a_training_in_a_thread_leaves_signals_alone(tmp_path):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    thread = threading.Thread(target=trainer(tiny_run(), tmp_path).train)
    thread.start()
    thread.join()
    assert len(read_metrics(tmp_path)) == 2
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def flip_a_bit_of_the_header(path: Path) -> None:
    """In a number of the JSON, which stays JSON."""
    content = path.read_bytes()
    assert b'\\"epochs\\": 3' in content
    path.write_bytes(content.replace(b'\\"epochs\\": 3', b'\\"epochs\\": 2', 1))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def be_foreign(path: Path) -> None:
    path.write_bytes((path.parent.parent / "last.safetensors").read_bytes())


def be_empty(path: Path) -> None:
    path.write_bytes(b"")


def be_a_web_page(path: Path) -> None:
    path.write_text("<html>not found</html>")


DAMAGES = [flip_a_bit, flip_a_bit_of_the_header, truncate, be_foreign, be_empty, be_a_web_page]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_recognised_and_the_one_before_is_used(tmp_path, damage):
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run_until(config, folder, step=6)
    last, before = checkpoint_paths(folder)
    damage(last)
    with pytest.raises(CheckpointError, match=f"^{last} "):
        read_checkpoint(last)
    resumed = trainer(config, folder, resume=True)
    assert resumed.state.step == 5
    assert f"{last} is " in said(resumed)
    assert f"going on from {before}" in said(resumed)
    assert checkpoint_paths(folder) == [before]
    assert last.with_suffix(".damaged").exists()
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")


def test_every_bit_of_a_checkpoint_counts(tmp_path):
    """A flip anywhere is seen, or changes nothing of what is read."""
    run_until(long_run(), tmp_path, step=2)
    path = checkpoint_paths(tmp_path)[0]
    original, content = read_checkpoint(path), path.read_bytes()
    draws = random.Random(0)
    unseen = 0
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError:
            continue
        unseen += 1
        assert found.facts == original.facts
    assert unseen <= 2


def test_where_no_checkpoint_can_be_used_nothing_is_started_anew(tmp_path):
    run_until(long_run(), tmp_path, step=6)
    for path in checkpoint_paths(tmp_path):
        truncate(path)
    with pytest.raises(
        CheckpointError, match=r"none of the 2 checkpoints in .* can be used: to start anew, move .* away"
    ):
        trainer(long_run(), tmp_path, resume=True)


def test_a_folder_without_a_checkpoint_starts_a_run_and_says_so(tmp_path):
    run = trainer(long_run(), tmp_path / "new", resume=True)
    assert "has no checkpoint: the run starts from its beginning" in said(run)
    assert run.state.step == 0


def test_another_configuration_or_teacher_is_refused_with_the_differences(tmp_path):
    config = variant("adaad", tmp_path)
    run_until(config, tmp_path / "run", step=6)
    changed = replace(
        config,
        seed=1,
        optim=replace(config.optim, epochs=5),
        teacher=save_teacher(tmp_path / "other.safetensors"),
    )
    with pytest.raises(CheckpointError) as refused:
        trainer(changed, tmp_path / "run", resume=True)
    for difference in ("seed 0 -> 1", "optim.epochs 3 -> 5", "teacher.checkpoint has other contents"):
        assert difference in str(refused.value)
    assert "learning_rate" not in str(refused.value)
    assert "\n" not in str(refused.value)
    # What changes no weight may be another.
    other = replace(config, log_every=1, checkpoint_every=50, on_nonfinite="skip", teacher_check=0)
    assert trainer(other, tmp_path / "run", resume=True).state.step == 6


def test_other_images_are_refused(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr("fastadaad.trainer.fingerprint", lambda dataset: "another")
    with pytest.raises(CheckpointError, match="data_sha256 has other contents"):
        trainer(long_run(), tmp_path, resume=True)


def test_another_version_is_said(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    now = versions()
    monkeypatch.setattr("fastadaad.trainer.versions", lambda: now | {"torch": "9.9"})
    resumed = trainer(long_run(), tmp_path, resume=True)
    assert "may differ in rounding" in said(resumed)
    assert "-> 9.9" in said(resumed)


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    trainer(long_run(), tmp_path).train()
    before = weights(tmp_path)
    run = trainer(long_run(), tmp_path, resume=True)
    run.distiller.step = None
    result = run.train()
    assert weights(tmp_path) == before
    assert result.best_epoch in (1, 2, 3)
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    run = trainer(long_run(), tmp_path)
    seen = []

    def start_another() -> None:
        with pytest.raises(ValueError, match=f"another process trains in {tmp_path}: wait"):
            trainer(long_run(), tmp_path, resume=True).train()
        seen.append(read_metrics(tmp_path))

    before_step(run, 6, start_another)
    run.train()
    assert len(seen[0]) == 1
    with locked(tmp_path) as own:
        assert own


def full_disk(*arguments) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_checkpoint_before_and_the_training_goes_on(tmp_path, monkeypatch):
    config = long_run()
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    before_step(run, 3, lambda: monkeypatch.setattr(os, "fsync", full_disk))
    seen = []
    before_step(run, 7, lambda: seen.extend(map(read_checkpoint, checkpoint_paths(folder))))
    before_step(run, 10, monkeypatch.undo)
    run.train()
    assert [checkpoint.state["training"]["step"] for checkpoint in seen] == [3, 2]
    assert said(run).count("the checkpoint cannot be written ([Errno 28] No space left on device)") == 1
    assert weights(folder) == weights(tmp_path / "whole")  # what could not be written was written later
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")


def test_a_disk_that_stays_full_is_an_error_at_the_end(tmp_path, monkeypatch):
    run = trainer(long_run(), tmp_path)
    before_step(run, 3, lambda: monkeypatch.setattr(os, "fsync", full_disk))
    with pytest.raises(OSError, match="No space left"):
        run.train()
    assert run.state.epoch == 3
    assert last_checkpoint(tmp_path, print).facts.epoch == 0


def test_a_lost_folder_is_reported_and_made_again(tmp_path):
    run = trainer(long_run(), tmp_path)
    checkpoints = tmp_path / "checkpoints"

    def put_a_file_in_its_place() -> None:
        for path in checkpoint_paths(tmp_path):
            path.unlink()
        checkpoints.rmdir()
        checkpoints.write_text("")

    before_step(run, 3, put_a_file_in_its_place)
    before_step(run, 6, checkpoints.unlink)
    run.train()
    assert said(run).count("the checkpoint cannot be written") == 1
    assert len(checkpoint_paths(tmp_path)) == 2


def test_every_generator_goes_on_where_it_was(tmp_path, monkeypatch):
    """A student that draws from Python's, numpy's and torch's generators at each step trains on bitwise."""

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


def test_a_checkpoint_is_tensors_and_plain_json(tmp_path):
    run_until(long_run(), tmp_path, step=6)
    path = checkpoint_paths(tmp_path)[0]
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["fastadaad"])
    assert header["content"]["facts"]["run"]["optim"]["epochs"] == 3
    assert header["content"]["facts"]["versions"]["torch"] == torch.__version__
    tensors = load_file(path)
    assert any("momentum_buffer" in name for name in tensors)
    assert any("averaged" in name for name in tensors)
    assert not any(kind in content for kind in (b"\x80\x02", b"PK\x03\x04")[1:])  # no zip of pickles


def test_the_format_is_checked(tmp_path, monkeypatch):
    run_until(long_run(), tmp_path, step=2)
    monkeypatch.setattr(run_checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="has format 1, and this version reads 2"):
        read_checkpoint(checkpoint_paths(tmp_path)[0])
