"""Whole runs on the embedded digits: files, schedule, best epoch, and bitwise repetition."""

import io
import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from tiny_runs import THREAT_MODEL, save_teacher, tiny_run
from torch import Tensor, nn

from bench.host_sync import HostSyncWatch
from fastadaad import methods, recipes
from fastadaad.config import TeacherPolicy
from fastadaad.config_io import override, read_config
from fastadaad.evaluation import evaluate
from fastadaad.models import read_state_dict
from fastadaad.run_config import ModelConfig, OptimConfig, RunConfig, TeacherConfig
from fastadaad.training import distiller as distiller_module
from fastadaad.training import trainer as trainer_module
from fastadaad.training.build import build_model, resolve_device
from fastadaad.training.evaluation import evaluate_on_test_set
from fastadaad.training.log import METRICS, read_metrics
from fastadaad.training.trainer import Trainer

CPU = torch.device("cpu")


def trainer(config: RunConfig, folder) -> Trainer:
    return Trainer(config, folder, Console(file=io.StringIO()))


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_a_run_leaves_its_files_and_its_best_weights_load_back(tmp_path):
    config = tiny_run(method="adaad", teacher=save_teacher(tmp_path / "teacher.safetensors"))
    run = trainer(config, tmp_path / "run")
    result = run.train()
    assert read_config(result.folder / "config.json") == config
    assert list((result.folder / "tensorboard").glob("events*"))
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "best.safetensors", "checkpoints", "config.json", "last.safetensors", "log.txt", "metrics.csv", "tensorboard",
    ]  # fmt: skip

    header, *_ = (result.folder / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(METRICS)
    rows = read_metrics(result.folder)
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 4), (2, 8)]
    best = max(rows, key=lambda row: row["robust_accuracy"])
    assert (result.best_epoch, result.best_robust_accuracy) == (best["epoch"], best["robust_accuracy"])

    path = result.folder / "best.safetensors"
    network = build_model(ModelConfig(name=config.student.name, checkpoint=str(path)), run.data, CPU)
    validation = partial(run.data.validation.epoch, 0)
    measured = evaluate(network, validation, ("natural", "pgd2"), threat_model=THREAT_MODEL, seed=config.seed)
    assert [m.accuracy for m in measured] == [best["natural_accuracy"], best["robust_accuracy"]]
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["fastadaad"])
    assert (facts["epoch"], facts["config"]["inner"]["step_size"]) == (best["epoch"], 0.05)
    for name, tensor in read_state_dict(result.folder / "last.safetensors").items():
        assert torch.equal(tensor, run.state.student.state_dict()[name]), name


TEACHER_METRICS = ("teacher_logit_error", "teacher_kl_error", "teacher_top_class_differs", "query_interval")


@pytest.mark.filterwarnings("ignore:teacher policy:UserWarning")
@pytest.mark.parametrize(
    ("policy", "intervals"), [("refreshed(every=2)", {2}), ("linearized(top=2,every=1)", {1}), ("refreshed", {1, 2})]
)
def test_each_epoch_logs_how_far_a_teacher_policy_was_off(tmp_path, policy, intervals):
    config = tiny_run(method="adaad", teacher=save_teacher(tmp_path / "teacher.safetensors"))
    config = replace(config, teacher=replace(config.teacher, policy=TeacherPolicy.parse(policy)))
    trainer(config, tmp_path / "run").train()
    rows = read_metrics(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        logit_error, kl_error, top_class_differs, query_interval = (row[name] for name in TEACHER_METRICS)
        assert logit_error > 0
        assert kl_error > 0
        assert 0 <= top_class_differs <= 1
        assert query_interval in intervals
    assert rows[0]["teacher_kl_error"] != rows[1]["teacher_kl_error"]  # the error of this epoch, not of all so far


def test_unmeasured_errors_of_the_teacher_stay_empty(tmp_path):
    exact = tiny_run(method="adaad", teacher=save_teacher(tmp_path / "teacher.safetensors"))
    without_adv = replace(
        exact,
        teacher=replace(exact.teacher, policy=TeacherPolicy(kind="refreshed")),
        method_options={"adversarial_weight": 0.0},
    )
    for name, config in (("exact", exact), ("teacher not evaluated at x_adv", without_adv), ("no teacher", tiny_run())):
        trainer(config, tmp_path / name).train()
        header, *rows = (tmp_path / name / "metrics.csv").read_text().splitlines()
        assert header.split(",")[-4:] == list(TEACHER_METRICS)
        assert [row.split(",")[-4:] for row in rows] == [[""] * 4] * 2, name
        assert not set(TEACHER_METRICS) & set(read_metrics(tmp_path / name)[0])


@pytest.mark.slow
def test_training_raises_accuracy(tmp_path):
    optim = OptimConfig(epochs=6, learning_rate=0.2, nesterov=True, schedule="cosine")
    config = tiny_run(optim=optim, student=ModelConfig(name="cnn-8-s1", normalize=True))
    result = trainer(replace(config, data=replace(config.data, num_samples=None)), tmp_path).train()
    rows = read_metrics(tmp_path)
    assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]
    assert result.best_robust_accuracy > 0.5  # 0.1 is chance


@pytest.mark.slow
@pytest.mark.parametrize("method", [*methods.METHODS, "adaad+igdm"])
def test_two_epochs_of_each_method_on_digits_beat_chance_under_attack(method, tmp_path):
    changes = ["optim.epochs=2", "data.num_samples=null", "data.batch_size=16", "optim.ema_decay=0"]
    if method == "saad":  # with 0, two epochs give weight to few images but those of which the teacher is unsure
        changes.append("method_options.natural_weight=1")
    if method == "lbgat-fixed":  # with 6, the kl keeps the logits level for more than two epochs
        changes.append("method_options.robustness_weight=0")
    config = override(recipes.get("demo", method=method), changes)
    run = trainer(config, tmp_path)
    run.train()
    natural, robust = evaluate_on_test_set(
        run.state.student,
        replace(config, evaluation=replace(config.evaluation, attacks=("natural", "pgd20"))),
        run.data,
        run.console,
        method,
    )
    assert robust.accuracy > 0.2  # 0.1 is chance, and 0.2 is six standard deviations of it on 360 images
    assert natural.accuracy > robust.accuracy


@pytest.mark.usefixtures("deterministic")
def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    runs = {}
    for name, seed in (("once", 0), ("again", 0), ("other", 1)):
        runs[name] = trainer(tiny_run(seed=seed), tmp_path / name)
        runs[name].train()
        torch.randn(3)  # draws of the caller must not matter
    assert torch.equal(torch.get_rng_state(), _after_draws(before, 3))
    once, again, other = (weights(run.state.student) for run in runs.values())
    assert all(torch.equal(tensor, again[name]) for name, tensor in once.items())
    files = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("once", "again")]
    assert files[0] == files[1]
    assert not torch.equal(once["fc.weight"], other["fc.weight"])


def _after_draws(state: Tensor, num_draws: int) -> Tensor:
    with torch.random.fork_rng():
        torch.set_rng_state(state)
        for _ in range(num_draws):
            torch.randn(3)
        return torch.get_rng_state()


def script_validation(monkeypatch, robust_accuracies) -> None:
    """Makes the n-th evaluation on the validation split return the n-th of `robust_accuracies`."""
    scripted = iter(robust_accuracies)

    def measure(model, config, data, **options):
        return {"natural_accuracy": 0.9, "robust_accuracy": next(scripted)}

    monkeypatch.setattr(trainer_module, "evaluate_on_validation_split", measure)


def test_the_best_epoch_is_kept_and_a_tie_keeps_the_earlier(tmp_path, monkeypatch):
    script_validation(monkeypatch, [0.0, 0.4, 0.4, 0.3])
    run = trainer(tiny_run(optim=OptimConfig(epochs=4, learning_rate=0.2)), tmp_path)
    saved = []
    finish_epoch = run._finish_epoch

    def finish_and_note(*arguments):
        finish_epoch(*arguments)
        saved.append((tmp_path / "best.safetensors").read_bytes())

    monkeypatch.setattr(run, "_finish_epoch", finish_and_note)
    result = run.train()
    assert (result.best_epoch, result.best_robust_accuracy) == (2, 0.4)
    assert saved[0] != saved[1] == saved[2] == saved[3]


def test_early_stopping_waits_for_its_number_of_epochs_without_a_rise(tmp_path, monkeypatch):
    script_validation(monkeypatch, [0.3, 0.5, 0.5, 0.4, 0.6])
    optim = OptimConfig(epochs=9, learning_rate=0.2)
    result = trainer(tiny_run(optim=optim, early_stop_epochs=2), tmp_path).train()
    assert result.best_epoch == 2
    assert len(read_metrics(tmp_path)) == 4


def test_only_every_nth_epoch_and_the_last_are_measured(tmp_path):
    config = tiny_run(optim=OptimConfig(epochs=3, learning_rate=0.2))
    config = replace(config, evaluation=replace(config.evaluation, every_epochs=2))
    trainer(config, tmp_path).train()
    assert ["robust_accuracy" in row for row in read_metrics(tmp_path)] == [False, True, True]


def test_without_a_validation_split_the_last_epoch_counts_as_the_best(tmp_path):
    config = tiny_run()
    config = replace(config, data=replace(config.data, validation_size=0))
    assert trainer(config, tmp_path).train().best_epoch == 2
    assert (tmp_path / "best.safetensors").read_bytes() == (tmp_path / "last.safetensors").read_bytes()


def record_steps(run: Trainer, monkeypatch) -> tuple[list[float], list[dict[str, Tensor]]]:
    """Returns lists that fill during the run: the learning rate of each step, and the student after it."""
    rates, students = [], []
    step = run.distiller.step

    def step_and_record(*args, **options):
        rates.append(run.state.optimizer.param_groups[0]["lr"])
        result = step(*args, **options)
        students.append(weights(run.state.student))
        return result

    monkeypatch.setattr(run.distiller, "step", step_and_record)
    return rates, students


def test_the_learning_rate_follows_the_schedule_step_by_step(tmp_path, monkeypatch):
    run = trainer(tiny_run(), tmp_path)
    rates, _ = record_steps(run, monkeypatch)
    run.train()
    # One cycle over 8 steps with a quarter of warm-up: up in 2 steps to 0.2, down in 6.
    expected = [0.0, 0.1, 0.2, 0.2 * 5 / 6, 0.2 * 4 / 6, 0.2 * 3 / 6, 0.2 * 2 / 6, 0.2 * 1 / 6]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_the_averaged_student_is_measured_and_saved(tmp_path, monkeypatch):
    decay = 0.7
    run = trainer(tiny_run(optim=OptimConfig(epochs=2, learning_rate=0.2, ema_decay=decay)), tmp_path)
    _, students = record_steps(run, monkeypatch)
    run.train()
    averaged = students[0]
    for student in students[1:]:
        averaged = {name: decay * averaged[name] + (1 - decay) * student[name] for name in averaged}
    saved = read_state_dict(tmp_path / "last.safetensors")
    for name, tensor in averaged.items():
        if saved[name].is_floating_point():  # not the counters of batch-norm
            torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(saved["fc.weight"], students[-1]["fc.weight"], atol=1e-3)


def test_swa_averages_the_students_of_the_last_epochs_equally(tmp_path, monkeypatch):
    run = trainer(tiny_run(optim=OptimConfig(epochs=4, learning_rate=0.2, swa_begin=0.5)), tmp_path)
    _, students = record_steps(run, monkeypatch)
    measured = []
    measure = trainer_module.evaluate_on_validation_split

    def note_and_measure(model, *arguments, **options):
        measured.append(weights(model))
        return measure(model, *arguments, **options)

    monkeypatch.setattr(trainer_module, "evaluate_on_validation_split", note_and_measure)
    run.train()
    ends = students[3::4]  # four steps an epoch
    for epoch, expected in enumerate([ends[0], ends[1], ends[2]]):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in measured[epoch].items()), epoch
    saved = read_state_dict(tmp_path / "last.safetensors")
    for name, tensor in saved.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (ends[2][name] + ends[3][name]) / 2, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(saved["fc.weight"], ends[3]["fc.weight"], atol=1e-3)


def test_awp_begins_with_its_epoch(tmp_path, monkeypatch):
    gammas = []
    original = distiller_module.perturbed_weights

    def note(network, gamma, form):
        gammas.append(gamma)
        return original(network, gamma, form)

    monkeypatch.setattr(distiller_module, "perturbed_weights", note)
    optim = OptimConfig(epochs=3, learning_rate=0.2, awp_gamma=0.005, awp_begin=2)
    trainer(tiny_run(optim=optim), tmp_path).train()
    assert gammas == [0.005] * 4


def test_an_epoch_waits_for_the_device_only_when_it_logs(tmp_path, monkeypatch):
    run = trainer(tiny_run(), tmp_path)  # 4 steps an epoch, log_every 3
    run_epoch = run._train_epoch
    counts = []

    def watched(*arguments):
        with HostSyncWatch() as watch:
            run_epoch(*arguments)
        counts.append(len(watch.seen))

    monkeypatch.setattr(run, "_train_epoch", watched)
    run.train()
    # The first step also makes the checks of a first call and compares the folded copies with their networks, twice.
    assert 1 < counts[0] <= 14
    assert counts[1] == 1


def test_the_mean_loss_of_an_epoch_is_logged(tmp_path, monkeypatch):
    run = trainer(tiny_run(), tmp_path)
    step, losses = run.distiller.step, []

    def step_and_record(*args, **options):
        result = step(*args, **options)
        losses.append(result.loss.item())
        return result

    monkeypatch.setattr(run.distiller, "step", step_and_record)
    run.train()
    logged = [row["train_loss"] for row in read_metrics(tmp_path)]
    assert logged == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4], rel=1e-6)


def test_a_teacher_without_weights_and_an_unusable_device_are_refused(tmp_path):
    teacher = TeacherConfig(name="cnn-6-s1")
    with pytest.raises(ValueError, match=r"teacher cnn-6-s1 has no weights: set teacher\.checkpoint=FILE"):
        trainer(tiny_run(method="adaad", teacher=teacher), tmp_path)
    with pytest.raises(ValueError, match=r"device 'abacus' cannot be used .*: try device=cpu"):
        resolve_device("abacus")
    assert resolve_device("cpu") == CPU


def test_a_prefix_chooses_the_teacher_of_a_file_of_several(tmp_path):
    """The run is that of the same teacher in a file of its own."""
    teachers = [save_teacher(tmp_path / f"{seed}.safetensors", seed) for seed in range(2)]
    states = [read_state_dict(teacher.checkpoint) for teacher in teachers]
    tensors = {f"net{seed}.{name}": tensor for seed, state in enumerate(states) for name, tensor in state.items()}
    torch.save(tensors, tmp_path / "both.pt")
    chosen = replace(teachers[1], checkpoint=str(tmp_path / "both.pt"), prefix="net1")
    runs = [
        trainer(tiny_run(method="adaad", teacher=teacher, optim=OptimConfig(epochs=1)), tmp_path / str(number))
        for number, teacher in enumerate((teachers[1], chosen, replace(chosen, prefix="net0")))
    ]
    alone, same, other = (weights(run.train() and run.state.student) for run in runs)
    assert all(torch.equal(tensor, same[name]) for name, tensor in alone.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in alone.items())


def test_a_normalised_model_gets_the_training_images_statistics(tmp_path):
    run = trainer(tiny_run(), tmp_path)
    assert run.state.student.normalize.mean.item() == pytest.approx(run.data.statistics[0][0], rel=1e-6)
    assert run.state.student.normalize.std.item() == pytest.approx(run.data.statistics[1][0], rel=1e-6)
    assert not math.isclose(run.data.statistics[1][0], 1.0)


def test_on_the_cpu_student_and_images_of_the_training_stay_contiguous(tmp_path):
    run = trainer(tiny_run(), tmp_path)
    seen = []
    take_step = run.distiller.step

    def noted_step(x_natural, *arguments, **options):
        seen.append(x_natural.stride() == (64, 64, 8, 1))
        return take_step(x_natural, *arguments, **options)

    run.distiller.step = noted_step
    run.train()
    assert seen == [True] * 8
    assert all(parameter.is_contiguous() for parameter in run.state.student.parameters())
