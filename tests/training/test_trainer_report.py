"""Reports of a training besides its metrics: self-check, compilation, precision, teacher policy."""

import io
import json
from dataclasses import replace
from pathlib import Path

import planted_faults
import pytest
import torch
from rich.console import Console
from tiny_runs import save_teacher, tiny_run

from fastadaad import ops
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.inner import maximizer as inner_maximizer
from fastadaad.ops import registration
from fastadaad.run_config import OptimConfig, RunConfig
from fastadaad.runtime.progress import ImageProgress
from fastadaad.training import build as builders_module
from fastadaad.training import distiller as distiller_module
from fastadaad.training import self_check
from fastadaad.training import trainer as trainer_module
from fastadaad.training.build import checked_mode
from fastadaad.training.log import read_metrics
from fastadaad.training.self_check import CHECKS, SelfCheckResult
from fastadaad.training.self_check import ops as self_check_ops
from fastadaad.training.trainer import Trainer

STEPS_PER_EPOCH, BATCH_SIZE = 4, 64  # values of tiny_run


def adaad_run(folder: Path, **changes) -> RunConfig:
    optim = OptimConfig(epochs=1, learning_rate=0.2)
    teacher = save_teacher(folder / "teacher.safetensors")
    return tiny_run(method="adaad", **{"teacher": teacher, "optim": optim, "layout": "contiguous"} | changes)


def train(config: RunConfig, folder: Path) -> list[str]:
    """Trains and returns the printed lines."""
    console = Console(file=io.StringIO(), width=60)
    Trainer(config, folder, console).train()
    return console.file.getvalue().splitlines()


def lines_about(word: str, lines: list[str]) -> list[str]:
    return [line for line in lines if word in line]


@pytest.fixture
def empty_machine_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path / "cache"))
    yield
    registration.switch_on("cpu")


@pytest.mark.usefixtures("empty_machine_cache")
def test_a_wrong_operation_is_switched_off_in_one_line_also_from_the_cache(tmp_path, monkeypatch):
    run = adaad_run(tmp_path)
    with planted_faults.wrong_kl_grad():
        (line,) = lines_about("self-check", train(run, tmp_path / "first"))
        assert "kl_grad failed, off on this machine" in line
        (row,) = (row for row in ops.report() if (row.op, row.device) == ("kl_grad", "cpu"))
        assert row.backend == "reference"
        assert "self-check failed" in row.reason

        registration.switch_on("cpu")  # as in a new process
        checked = []
        monkeypatch.setattr(self_check_ops, "failing_cases", lambda *arguments: checked.append(arguments) or [])
        assert lines_about("self-check", train(run, tmp_path / "second")) == [line]
        assert not checked
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


@pytest.mark.usefixtures("empty_machine_cache")
def test_a_machine_without_faults_is_checked_once_and_silently(tmp_path, monkeypatch):
    checked, true_check = [], self_check_ops.failing_cases
    monkeypatch.setattr(self_check_ops, "failing_cases", lambda *given: checked.append(given) or true_check(*given))
    for name in ("first", "second"):
        assert not lines_about("self-check", train(adaad_run(tmp_path), tmp_path / name))
    assert len(checked) == len(self_check.OPS)


def result_without(failed: str | None = None, not_run: str | None = None) -> SelfCheckResult:
    return SelfCheckResult(
        passed=tuple(check for check in CHECKS if check not in (failed, not_run)),
        failures={failed: "planted"} if failed else {},
        not_run={not_run: "planted"} if not_run else {},
        device="cuda",
        seconds=0.0,
    )


@pytest.mark.parametrize(
    ("mode", "result", "expected"),
    [
        ("auto", result_without(), "graph"),
        ("auto", result_without(not_run="captured"), "compiled"),
        ("auto", result_without(failed="captured"), "compiled"),
        ("auto", result_without(failed="compiled"), "eager"),
        ("graph", result_without(failed="captured"), "compiled"),
        ("graph", result_without(failed="kl_grad"), "graph"),
        ("compiled", result_without(), "compiled"),
        ("compiled", result_without(failed="compiled"), "eager"),
        ("eager", result_without(), "eager"),
    ],
)
def test_the_mode_on_cuda_is_the_fastest_that_passed_the_self_check(monkeypatch, mode, result, expected):
    monkeypatch.setattr(builders_module, "ensure_checked", lambda device: result)
    assert checked_mode(mode, torch.device("cuda")) == expected


def test_auto_is_eager_on_the_cpu_and_a_mode_without_its_device_is_refused_before_any_check(monkeypatch):
    assert checked_mode("auto", torch.device("cpu")) == "eager"
    monkeypatch.setattr(builders_module, "ensure_checked", None)
    with pytest.raises(ValueError, match="mode graph needs a CUDA device"):
        checked_mode("graph", torch.device("cpu"))
    with pytest.raises(ValueError, match="mode is 'fast': choose eager, compiled, graph or auto"):
        checked_mode("fast", torch.device("cpu"))


@pytest.mark.parametrize(("mode", "untimed_steps"), [("compiled", 1), ("eager", 0)])
def test_the_first_step_of_a_compiled_run_is_shown_as_compiling_and_not_timed(
    tmp_path, monkeypatch, mode, untimed_steps
):
    for module in (inner_maximizer, distiller_module):  # as if compiled, without the wait
        monkeypatch.setattr(module, "one_graph", lambda function, **options: function)
    titles, stop = [], ImageProgress.clock_stopped
    monkeypatch.setattr(
        ImageProgress, "clock_stopped", lambda self, title=None: titles.append(title) or stop(self, title)
    )
    lines = train(adaad_run(tmp_path, mode=mode, optim=OptimConfig(epochs=2, learning_rate=0.2)), tmp_path / "run")
    assert titles.count("compiling") == len(lines_about("compiled in", lines)) == untimed_steps
    # Student and teacher have four layers each, at three seconds a layer.
    notice = "compiling, up to 24 s the first time"
    assert lines_about("compiling,", lines) == untimed_steps * [notice]
    for row in read_metrics(tmp_path / "run"):
        timed_images = (row["epoch"] * STEPS_PER_EPOCH - untimed_steps) * BATCH_SIZE
        assert row["images_per_s"] * row["seconds"] == pytest.approx(timed_images)


def test_low_precision_is_measured_at_the_start_and_at_the_end(tmp_path):
    precision = PrecisionConfig(student="bf16", teacher="bf16")
    lines = train(adaad_run(tmp_path, precision=precision), tmp_path / "run")
    shares = json.loads((tmp_path / "run" / "precision.json").read_text())
    assert list(shares) == ["start", "end"]
    assert shares["start"] != shares["end"]
    for moment, (line, measured) in zip(
        shares, zip(lines_about("in bf16", lines), shares.values(), strict=True), strict=True
    ):
        assert 0.8 < measured["same_sign"] < 1
        assert f"at the {moment}: {measured['same_sign']:.2%} of the pixel gradients" in line


def test_measuring_the_precision_does_not_change_the_training(tmp_path, monkeypatch):
    config = adaad_run(tmp_path, precision=PrecisionConfig(teacher="bf16"))
    train(config, tmp_path / "measured")
    monkeypatch.setattr(trainer_module, "report_precision", lambda *given: None)
    train(config, tmp_path / "not measured")
    weights = [(tmp_path / name / "last.safetensors").read_bytes() for name in ("measured", "not measured")]
    assert weights[0] == weights[1]


def test_a_teacher_policy_is_reported_with_its_last_error(tmp_path):
    config = adaad_run(tmp_path)
    config = replace(config, teacher=replace(config.teacher, policy=TeacherPolicy(kind="refreshed", every=2)))
    (line,) = lines_about("teacher policy", train(config, tmp_path / "run"))
    last = read_metrics(tmp_path / "run")[-1]
    assert line == (
        f"teacher policy refreshed(every=2): queried every 2 steps, kl off by {last['teacher_kl_error']:.1%}, "
        f"another top class in {last['teacher_top_class_differs']:.1%} of the images"
    )


def test_an_exact_run_in_fp32_reports_neither_precision_nor_policy(tmp_path):
    lines = train(adaad_run(tmp_path), tmp_path / "run")
    assert not lines_about("teacher policy", lines)
    assert not lines_about("memory", lines)  # of a CUDA device
    assert not lines_about("TFLOP/s", lines)
    assert lines_about("fp32", lines) == ["tiny adaad seed 0: student fp32, teacher fp32, eager mode on cpu"]
    assert not (tmp_path / "run" / "precision.json").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b'"',
        b"epoch,step,other\n1,2,3\n",
        b"epoch,step\n1,x\n",
        b"epoch,step\n1,2,3\n",
        b"step\n3\n",
        b"epoch,step\n,\n",
    ],
)
def test_a_damaged_metrics_file_is_named(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"epoch,step,train_loss\n1,4,\n")
    assert read_metrics(tmp_path) == [{"epoch": 1, "step": 4}]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} cannot be read \(.*\): resume the run, which writes it again$"):
        read_metrics(tmp_path)
