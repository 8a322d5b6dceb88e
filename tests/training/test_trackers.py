"""Trackers: what wandb's and mlflow's clients are called with, and a run that goes on without them."""

import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_runs import tiny_run

from fastadaad.training.log import read_metrics
from fastadaad.training.trackers import Trackers
from fastadaad.training.trainer import Trainer


class Client:
    """Stands for a client's module: records the calls of any name, and fails in those named `fails`."""

    def __init__(self, fails: str = "") -> None:
        self.calls, self.fails = [], fails

    def __getattr__(self, name: str):
        def call(*arguments, **options):
            self.calls.append((name, arguments, options))
            if name == self.fails:
                raise ConnectionError("no\nanswer")
            return self

        return call

    def of(self, name: str) -> list[tuple]:
        return [(arguments, options) for called, arguments, options in self.calls if called == name]


@pytest.fixture
def clients(monkeypatch) -> SimpleNamespace:
    both = SimpleNamespace(wandb=Client(), mlflow=Client())
    for name, client in vars(both).items():
        monkeypatch.setitem(sys.modules, name, client)
    return both


@pytest.mark.slow
def test_a_run_logs_each_epoch_to_both_trackers(clients, tmp_path):
    folder = tmp_path / "my-run"
    Trainer(tiny_run(trackers=("wandb", "mlflow")), folder, Console(quiet=True)).train()
    rows = read_metrics(folder)
    expected = [
        ({name: value for name, value in row.items() if name not in ("epoch", "step")}, int(row["step"]))
        for row in rows
    ]
    assert len(expected) == 2
    for client, method in ((clients.wandb, "log"), (clients.mlflow, "log_metrics")):
        logged = [(arguments[0], options["step"]) for arguments, options in client.of(method)]
        assert [step for _, step in logged] == [step for _, step in expected]
        assert [metrics for metrics, _ in logged] == [pytest.approx(metrics) for metrics, _ in expected]
    ((_, init),) = clients.wandb.of("init")
    assert (init["project"], init["name"], init["resume"], init["dir"]) == ("fastadaad", "my-run", "allow", str(folder))
    assert init["config"]["optim"]["epochs"] == 2
    (((params,), _),) = clients.mlflow.of("log_params")
    assert (params["optim.epochs"], params["data.name"]) == ("2", "digits")
    assert len(clients.wandb.of("finish")) == len(clients.mlflow.of("end_run")) == 1


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(monkeypatch, tmp_path, caplog, fails):
    broken, sound = Client(fails), Client()
    monkeypatch.setitem(sys.modules, "wandb", broken)
    monkeypatch.setitem(sys.modules, "mlflow", sound)
    trackers = Trackers(("wandb", "mlflow"), tmp_path, tiny_run())
    for step in (4, 8):
        trackers.log({"epoch": step / 4, "step": step, "train_loss": 1.0, "teacher_kl_error": None})
    trackers.close()
    assert caplog.messages == ["wandb failed (no answer): the training goes on without it; metrics.csv has all epochs"]
    assert [(arguments[0], options["step"]) for arguments, options in sound.of("log_metrics")] == [
        ({"train_loss": 1.0}, 4),
        ({"train_loss": 1.0}, 8),
    ]


def test_a_client_that_is_not_installed_is_named_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(
        ValueError, match=r"trackers has wandb, which is not installed: pip install 'fastadaad\[wandb\]'"
    ):
        Trackers(("wandb",), tmp_path, tiny_run())
    with pytest.raises(ValueError, match="a tracker is 'tensorboard': choose wandb or mlflow"):
        tiny_run(trackers=("tensorboard",))


def test_runs_in_folders_of_one_name_are_two_runs_and_a_resumed_one_is_the_same(clients, tmp_path):
    for parent in ("a", "b", "a"):
        (tmp_path / parent / "run").mkdir(parents=True, exist_ok=True)
        Trackers(("wandb",), tmp_path / parent / "run", tiny_run()).close()
    first, other, again = (options["id"] for _, options in clients.wandb.of("init"))
    assert first == again != other
