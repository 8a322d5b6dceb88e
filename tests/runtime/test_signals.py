"""SIGTERM and SIGINT: a training finishes its step, saves and can resume; other work stops at once."""

import multiprocessing
import os
import signal
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from stopped_runs import before_step, full_disk, long_run, printed_by, trainer, untimed_rows, variant, weights
from tiny_runs import tiny_run

from fastadaad.cli import main
from fastadaad.runtime.signals import Interrupted, stopped_by_signals
from fastadaad.training.checkpoint import checkpoint_paths
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"])
def test_a_signal_finishes_the_step_and_saves_and_the_run_can_resume(tmp_path, number, code):
    config = replace(long_run(), checkpoint_every=100)
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    run = trainer(config, folder)
    before_step(run, 5, lambda: signal.raise_signal(number))
    with pytest.raises(
        Interrupted, match=r"^stopped in epoch 2 of 3, step 6, and saved; start it again to resume"
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


def test_a_signal_in_the_last_step_of_an_epoch_leaves_its_end_to_the_next_process(tmp_path):
    config = variant("swa", tmp_path)
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    before_step(run, 7, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="step 8"):
        run.train()
    resumed = trainer(config, folder, resume=True)
    assert (resumed.state.epoch, resumed.state.step, len(resumed.state.rows)) == (1, 8, 1)
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")


def test_a_stop_that_cannot_be_saved_is_reported(tmp_path, monkeypatch):
    run = trainer(long_run(), tmp_path)

    def fill_the_disk_and_stop() -> None:
        monkeypatch.setattr(os, "fsync", full_disk)
        signal.raise_signal(signal.SIGTERM)

    before_step(run, 5, fill_the_disk_and_stop)
    with pytest.raises(Interrupted, match=r"step 6, which could not be saved: the checkpoint before it counts; start"):
        run.train()
    assert checkpoint_paths(tmp_path)[0].name == "step-000000005.safetensors"


def test_a_signal_during_the_validation_keeps_the_epoch(tmp_path, monkeypatch):
    config = replace(long_run(), checkpoint_every=100)
    trainer(config, tmp_path / "whole").train()
    folder = tmp_path / "stopped"
    run = trainer(config, folder)
    average = run.state.average_after_epoch
    monkeypatch.setattr(
        run.state, "average_after_epoch", lambda optim: (average(optim), signal.raise_signal(signal.SIGTERM))
    )
    with pytest.raises(Interrupted):
        run.train()
    resumed = trainer(config, folder, resume=True)
    assert (resumed.state.epoch, resumed.state.step, resumed.state.rows) == (1, 4, [])
    resumed.train()
    assert weights(folder) == weights(tmp_path / "whole")
    assert untimed_rows(folder) == untimed_rows(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_survive_a_signal_and_the_step_is_finished(tmp_path, capfd, number):
    """Ctrl-C in a terminal, or a batch system, signals all processes of a job, the workers of the engine torch too."""
    config = long_run()
    config = replace(config, data=replace(config.data, engine="torch"), checkpoint_every=100)
    run = Trainer(config, tmp_path, Console(width=200))  # on the output of the workers

    def press() -> None:
        workers = multiprocessing.active_children()
        assert workers
        # By another process: torch's workers obey their parent.
        subprocess.run(["kill", f"-{number}", *(str(worker.pid) for worker in workers)], check=True)
        for worker in workers:
            worker.join(timeout=0.1)
            assert worker.is_alive()
        signal.raise_signal(number)

    before_step(run, 5, press)
    with pytest.raises(Interrupted, match="step 6"):
        run.train()
    assert capfd.readouterr().out.count(f"{number.name}: finishing the step") == 1


def test_a_signal_after_the_last_epoch_is_handled(tmp_path, monkeypatch):
    run = trainer(long_run(), tmp_path)
    monkeypatch.setattr(
        "fastadaad.training.trainer.report_skipped_images", lambda *given: signal.raise_signal(signal.SIGTERM)
    )
    with pytest.raises(Interrupted, match="stopped after the last epoch, and saved"):
        run.train()
    assert len(read_metrics(tmp_path)) == 3
    again = trainer(long_run(), tmp_path, resume=True)
    assert "resuming from" in printed_by(again)
    assert ": finished" in printed_by(again)


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


WORDS = (
    "train", "demo", "optim.epochs=1", "inner.num_steps=1", "evaluation.validation_attack=pgd1", "deterministic=true",
    "device=cpu", 'evaluation.attacks=["natural"]', "--resume",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*WORDS, "--run-folder", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "doing"),
    [
        (signal.SIGTERM, "fastadaad.training.trainer.training_data"),
        (signal.SIGINT, "fastadaad.training.build.ensure_checked"),
        (signal.SIGTERM, "fastadaad.training.trainer.check_before_training"),
        (signal.SIGINT, "fastadaad.training.trainer.evaluate_on_test_set"),
        (signal.SIGTERM, "fastadaad.training.trainer.evaluate_on_test_set"),
    ],
)
def test_a_signal_before_or_after_the_training_stops_the_command_at_once(
    tmp_path, whole, monkeypatch, capsys, number, doing
):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as stopping:
        stopping.setattr(doing, lambda *arguments, **options: signal.raise_signal(number))
        assert main(WORDS) == 128 + number
    is_trained = "test_set" in doing
    saved = "what was saved so far is complete (train --resume continues the run)"
    assert capsys.readouterr().err == f"fastadaad: stopped; {saved if is_trained else 'nothing was saved yet'}\n"
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert len(list(tmp_path.glob("runs/*"))) == is_trained
    assert main(WORDS) == 0
    (folder,) = tmp_path.glob("runs/*")
    assert weights(folder) == weights(whole)
    assert (folder / "results.csv").exists()


@pytest.mark.parametrize(("saved", "words"), [(False, "nothing was saved yet"), (True, "saved so far is complete")])
def test_the_line_says_if_anything_was_saved(saved, words):
    with pytest.raises(Interrupted, match=words), stopped_by_signals(lambda: saved):
        signal.raise_signal(signal.SIGTERM)


def stop_twice(number: int) -> None:
    with stopped_by_signals():
        try:
            signal.raise_signal(number)
        finally:  # stands for cleaning up, which may take long
            signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_the_cleaning_up_after_the_first(number):
    # A new process: a forked one may inherit a lock that another thread of this one holds.
    process = multiprocessing.get_context("spawn").Process(target=stop_twice, args=(number,), daemon=True)
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -number
