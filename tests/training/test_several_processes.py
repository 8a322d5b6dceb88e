"""Several ranks train the student of a single process; a lost rank ends the others, and torchrun resumes the run."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_runs import save_teacher, tiny_run
from torch import Tensor

from fastadaad import InnerConfig, ThreatModel, cli, methods
from fastadaad.evaluation import evaluate
from fastadaad.run_config import ModelConfig, OptimConfig, RunConfig
from fastadaad.training.build import build_model
from fastadaad.training.data import training_data
from fastadaad.training.log import read_metrics
from fastadaad.training.trainer import Trainer

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "several_processes.py"
TIME_LIMIT_S = 600.0  # limit of a launch that hangs; on a busy machine all runs take minutes
RANK_TIMEOUT_S = 5.0  # for tests in which a rank hangs

# A step in l2 is as smooth as its gradient; the sign of l_inf turns rounding errors of a gradient into whole steps.
INNER = InnerConfig(threat_model=ThreatModel(norm="l2", epsilon=1.0), step_size=0.5, num_steps=2)
# TRADES and LBGAT from a distant start: after 0.001 N(0, 1) its whole gradient is of the size of rounding errors.
UNIFORM = replace(INNER, start="uniform")


def run_of(method: str, teacher, **changes) -> RunConfig:
    """Two epochs of four steps; nothing in the run depends on the number of ranks."""
    given = {
        "method": method,
        "teacher": teacher if methods.get(method).needs_teacher else None,
        "optim": OptimConfig(epochs=2, learning_rate=0.05, ema_decay=0.9),
        "inner": UNIFORM if method.startswith(("trades", "lbgat")) else INNER,
        "batch_norm": "sync",
        "checkpoint_every": 1,
        "log_every": 2,
        "deterministic": True,
    }
    return tiny_run(**given | changes)


def launch(
    folder: Path, tasks: list[dict], *options: str, rank_timeout_s: float = TIME_LIMIT_S
) -> subprocess.CompletedProcess:
    """Runs `tasks` on two ranks; see several_processes.py."""
    for task in tasks:
        (folder / f"{task['name']}.json").write_text(json.dumps(asdict(task["config"])))
    plain = [{name: value for name, value in task.items() if name != "config"} for task in tasks]
    (folder / "tasks.json").write_text(json.dumps(plain))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, *options, SCRIPT, folder],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "RANK_TIMEOUT_S": str(rank_timeout_s)},
        timeout=TIME_LIMIT_S,
        check=False,
    )


def one_process(config: RunConfig, folder: Path, *, resume: bool = False) -> dict[str, Tensor]:
    """Trains in this process and returns the student's weights."""
    run = Trainer(config, folder, Console(file=io.StringIO(), width=200), resume=resume)
    run.train()
    return run.state.student.state_dict()


def largest_difference(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Largest difference of a tensor, relative to its largest value."""
    differences = [
        (weights[name] - others[name]).abs().max() / weights[name].abs().max().clamp(min=1e-3)
        for name in weights
        if weights[name].is_floating_point()
    ]
    return torch.stack(differences).max().item()


SEEDS = (0, 1)
CLIPPED = OptimConfig(epochs=2, learning_rate=0.5, grad_clip=0.05)
EVERY_METHOD = [*methods.METHODS, "adaad+igdm"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, teacher) -> Path:
    """Folder of a run of each method, and of some runs with other settings."""
    folder = tmp_path_factory.mktemp("two")
    tasks = [
        {"name": f"{method}{seed or ''}", "config": run_of(method, teacher, seed=seed)}
        for method in EVERY_METHOD
        for seed in SEEDS
    ]
    tasks.append({"name": "local", "config": run_of("adaad", teacher, batch_norm="local")})
    optim = OptimConfig(epochs=2, optimizer="lamb", learning_rate=0.005, awp_gamma=0.005, micro_batch=20)
    tasks.append({"name": "lamb", "config": run_of("adaad", teacher, optim=optim)})
    tasks.append({"name": "mixed", "config": mixed_run()})
    tasks.append({"name": "clipped", "config": run_of("adaad", teacher, optim=CLIPPED)})
    tasks += [{"name": "local step", "config": one_step(batch_norm="local")}, {"name": "step", "config": one_step()}]
    result = launch(folder, tasks)
    assert result.returncode == 0, result.stderr
    return folder


def weights_of(folder: Path, name: str, rank: int = 0) -> dict[str, Tensor]:
    return torch.load(folder / f"{name}-rank{rank}.pt")


@pytest.mark.parametrize("method", [method for method in EVERY_METHOD if method != "saad"])
def test_two_processes_train_what_one_trains(two_processes, tmp_path, teacher, method):
    """One run may differ by more, if rounding moves a ReLU over its edge; a fault would show at every seed."""
    differences = {}
    for seed in SEEDS:
        folder, name = tmp_path / str(seed), f"{method}{seed or ''}"
        alone = one_process(run_of(method, teacher, seed=seed), folder)
        rows, others = read_metrics(folder), read_metrics(two_processes / name)
        assert [row["step"] for row in others] == [4, 8]
        losses = [abs(other["train_loss"] / row["train_loss"] - 1) for row, other in zip(rows, others, strict=True)]
        differences[largest_difference(alone, weights_of(two_processes, name))] = max(losses)
    assert min(differences) < 2e-5
    assert differences[min(differences)] < 1e-4


@pytest.mark.parametrize("name", [*EVERY_METHOD, "local", "lamb", "clipped", "mixed"])
def test_both_processes_have_the_same_student(two_processes, name):
    weights, others = weights_of(two_processes, name), weights_of(two_processes, name, rank=1)
    assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())


def test_saad_weighs_an_image_by_the_images_of_its_rank(two_processes, tmp_path, teacher):
    """The documented exception: close to a single process, but not equal."""
    alone = one_process(run_of("saad", teacher), tmp_path)
    assert 1e-4 < largest_difference(alone, weights_of(two_processes, "saad")) < 0.1


def one_step(**changes) -> RunConfig:
    """One step of PGD-AT from the natural images, on all 256 images."""
    config = run_of("pgd-at", None, optim=OptimConfig(epochs=1, learning_rate=0.05), **changes)
    return replace(config, data=replace(config.data, batch_size=256), inner=replace(config.inner, start="natural"))


def test_local_statistics_equal_those_of_micro_batches(two_processes, tmp_path, monkeypatch):
    """A single process whose two micro-batches are the shards of two ranks makes the same update."""
    config = one_step(batch_norm="local")
    run = Trainer(replace(config, optim=replace(config.optim, micro_batch=128)), tmp_path, Console(file=io.StringIO()))
    ((x_natural, labels),) = run.data.train.epoch(0)
    shards = [torch.cat([tensor[0::2], tensor[1::2]]) for tensor in (x_natural, labels)]
    monkeypatch.setattr(run.data.train, "epoch", lambda epoch, start_batch=0: iter([shards][start_batch:]))
    run.train()
    alone, local, whole = run.state.student, weights_of(two_processes, "local step"), weights_of(two_processes, "step")
    parameters = {name: parameter.detach() for name, parameter in alone.named_parameters()}
    assert largest_difference(parameters, local) < 1e-5
    assert largest_difference(parameters, whole) > 1e-4  # with the statistics of all
    # The running mean of equal shards is that of all images; the variance lacks the variance between the shards.
    means, variances = ([name for name in local if name.endswith(end)] for end in ("running_mean", "running_var"))
    assert largest_difference({name: local[name] for name in means[:1]}, whole) < 1e-5
    assert (local[variances[0]] <= whole[variances[0]] * 1.001).all()


def mixed_run() -> RunConfig:
    config = run_of("pgd-at", None)
    return replace(config, data=replace(config.data, mixup=0.4, cutmix=1.0, label_smoothing=0.1))


def test_mixed_images_are_those_of_a_single_process(two_processes, tmp_path):
    alone = one_process(mixed_run(), tmp_path)
    assert largest_difference(alone, weights_of(two_processes, "mixed")) < 1e-4


def test_the_gradient_is_clipped_after_the_exchange(two_processes, tmp_path, teacher):
    """Gradients that each rank clips by its own norm have another mean."""
    alone = one_process(run_of("adaad", teacher, optim=CLIPPED), tmp_path)
    assert largest_difference(alone, weights_of(two_processes, "clipped")) < 1e-4


def test_micro_batches_lamb_and_awp_go_through_the_exchange(two_processes, tmp_path, teacher):
    """A single process takes twice as many images at a time, in the same micro-batches."""
    optim = OptimConfig(epochs=2, optimizer="lamb", learning_rate=0.005, awp_gamma=0.005, micro_batch=40)
    alone = one_process(run_of("adaad", teacher, optim=optim), tmp_path)
    assert largest_difference(alone, weights_of(two_processes, "lamb")) < 1e-3


def test_an_evaluation_in_shards_gives_the_accuracy_of_a_single_process(two_processes, teacher):
    """Natural accuracy has no random start, so it is the same to the last bit."""
    config = run_of("pgd-at", teacher)
    data = training_data(config, torch.device("cpu"))
    weights = ModelConfig(name=config.student.name, checkpoint=str(two_processes / "pgd-at" / "last.safetensors"))
    (natural,) = evaluate(
        build_model(weights, data, torch.device("cpu")),
        lambda: data.validation.epoch(0),
        ("natural",),
        threat_model=config.evaluation.threat_model,
    )
    assert read_metrics(two_processes / "pgd-at")[-1]["natural_accuracy"] == natural.accuracy


def test_the_command_evaluate_gives_the_same_table_on_two_ranks(two_processes, tmp_path):
    """The attacks have no random start; the 101 images cannot be halved."""
    words = ["evaluate", str(two_processes / "pgd-at"), "--attacks", "natural,fgsm", "-n", "101", "--csv"]
    assert cli.main([*words, str(tmp_path / "one.csv")]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "fastadaad"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *words, str(tmp_path / "two.csv")], env=environment, check=True, timeout=TIME_LIMIT_S)
    one, two = (
        [(row["attack"], row["num_images"], row["accuracy"]) for row in csv.DictReader(path.read_text().splitlines())]
        for path in (tmp_path / "one.csv", tmp_path / "two.csv")
    )
    assert one == two
    assert [row[:2] for row in one] == [("natural", "101"), ("fgsm", "101")]


def test_no_thread_of_the_group_outlives_it(two_processes):
    """One that did would sometimes end the process with SIGABRT, while the interpreter is taken down."""
    for rank in range(2):
        threads = (two_processes / f"threads{rank}").read_text().split()
        assert threads
        assert not [name for name in threads if "gloo" in name]


FAULT = {"rank": 1, "step": 5}


def failing(folder: Path, teacher, how: str, **options: float) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Returns a launch that fails, and the messages of its ranks without torchrun's report."""
    task = {"name": "run", "config": run_of("adaad", teacher), "fault": FAULT | {"how": how}}
    result = launch(folder, [task], **options)
    assert result.returncode != 0
    return result, [line for line in result.stderr.splitlines() if line.startswith("fastadaad: ")]


def test_an_exception_is_shown_once_with_its_rank(tmp_path, teacher):
    result, lines = failing(tmp_path, teacher, "raises")
    assert lines == ["fastadaad: rank 1 failed, which ends the others"]
    assert result.stderr.count("RuntimeError: planted failure") == 1
    assert result.stderr.count("in step_or_fail") == 1


def test_a_mistake_is_one_line(tmp_path, teacher):
    result, lines = failing(tmp_path, teacher, "refuses")
    assert lines == ["fastadaad: rank 1: planted mistake: mend it"]
    assert "step_or_fail" not in result.stderr


def test_a_killed_process_is_named_by_torchrun(tmp_path, teacher):
    result, _ = failing(tmp_path, teacher, "killed")
    report = result.stderr[result.stderr.index("Root Cause") :]
    assert "rank      : 1" in report
    assert "Signal 9 (SIGKILL)" in report


def test_a_rank_that_does_not_answer_is_named_by_one_that_does(tmp_path, teacher):
    _, lines = failing(tmp_path, teacher, "stopped", rank_timeout_s=RANK_TIMEOUT_S)
    assert lines == ["fastadaad: lost contact, as rank 0 noticed, with rank 1"]


def test_a_rank_that_hangs_prints_its_stack(tmp_path, teacher):
    result, lines = failing(tmp_path, teacher, "hangs", rank_timeout_s=RANK_TIMEOUT_S)
    (line,) = lines
    assert re.fullmatch(r"fastadaad: rank 1 has made no progress for \d+ s, which ends the others", line)
    assert result.stderr.count("time.sleep(3600)") == 1
    assert "all_reduce" not in result.stderr  # the place of the other rank


def test_torchrun_resumes_a_run_from_its_last_checkpoint(tmp_path, two_processes, teacher):
    """A killed rank and one restart give the weights of an undisturbed run, bitwise."""
    task = {"name": "adaad", "config": run_of("adaad", teacher), "fault": FAULT | {"how": "killed"}, "resume": True}
    result = launch(tmp_path, [task], "--max-restarts=1")
    assert result.returncode == 0, result.stderr
    assert "resuming from" in result.stdout
    assert "epoch 2 of 2, step 5" in result.stdout
    for rank in (0, 1):
        weights, undisturbed = weights_of(tmp_path, "adaad", rank), weights_of(two_processes, "adaad")
        assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in weights.items())


def test_a_signal_to_one_rank_stops_all_at_one_step_and_another_number_of_ranks_resumes(tmp_path, teacher):
    config = replace(run_of("adaad", teacher), checkpoint_every=100)
    result = launch(tmp_path, [{"name": "run", "config": config, "fault": FAULT | {"how": "SIGTERM"}}])
    assert result.returncode != 0
    # Both ranks print a traceback, as this script is not the command line.
    assert result.stderr.count("stopped in epoch 2 of 2, step 6") == 2
    weights = one_process(config, tmp_path / "run", resume=True)
    alone = one_process(config, tmp_path / "alone")
    assert largest_difference(alone, weights) < 2e-5
