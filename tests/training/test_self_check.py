"""Self-check: its result is cached, failing kernels are switched off, and one warning names a report."""

import json
import warnings
from pathlib import Path

import planted_faults
import pytest
import torch

from fastadaad import cli, ops
from fastadaad.ops import registration
from fastadaad.training import self_check
from fastadaad.training.self_check import CHECKS, OPS, SelfCheckResult
from fastadaad.training.self_check import ops as self_check_ops
from fastadaad.training.self_check import steps as self_check_steps


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path))
    yield tmp_path
    registration.switch_on("cpu")


@pytest.fixture
def compiled_runs(monkeypatch):
    """Counts the checks of compiled steps, which pass at once."""
    runs = []
    monkeypatch.setattr(self_check_steps, "compiled_difference", lambda device: runs.append(device))
    return runs


@pytest.fixture
def wrong_kl_grad():
    with planted_faults.wrong_kl_grad():
        yield


def count_op_checks(monkeypatch) -> list[str]:
    checked = []
    monkeypatch.setattr(self_check_ops, "failing_cases", lambda op, device: checked.append(op) or [])
    return checked


def test_a_machine_without_faults_passes_and_checks_that_are_not_run_have_a_reason():
    random_state = torch.get_rng_state()
    result = self_check.self_check("cpu")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert result.passed == OPS
    assert result.failures == {}
    assert result.not_run == {
        "compiled": "fastadaad doctor --verify runs it",
        "captured": "CUDA graphs need a CUDA device",
    }
    assert result.report_path is None
    assert "all of" in result.summary


def test_a_result_is_cached_until_a_forced_check_or_one_with_more_checks(monkeypatch, compiled_runs):
    checked = count_op_checks(monkeypatch)
    first = self_check.self_check("cpu")
    assert len(checked) == len(OPS)
    assert self_check.self_check("cpu") == first
    assert len(checked) == len(OPS)
    more = self_check.self_check("cpu", checks=CHECKS)
    assert more.passed == (*OPS, "compiled")
    assert self_check.self_check("cpu", checks=CHECKS) == self_check.self_check("cpu") == more
    assert (len(checked), len(compiled_runs)) == (2 * len(OPS), 1)
    self_check.self_check("cpu", force=True)
    assert len(checked) == 3 * len(OPS)


def test_another_machine_is_checked_again(monkeypatch):
    checked = count_op_checks(monkeypatch)
    self_check.self_check("cpu")
    monkeypatch.setattr(self_check.machine_cache, "machine_key", lambda device: "another")
    self_check.self_check("cpu")
    assert len(checked) == 2 * len(OPS)


def test_a_wrong_kernel_is_switched_off_and_reported_in_one_line(wrong_kl_grad, caplog):
    result = self_check.ensure_checked("cpu")
    assert list(result.failures) == ["kl_grad"]
    (line,) = caplog.messages
    assert "\n" not in line
    assert "kl_grad failed, off on this machine" in line
    assert line.endswith(result.report_path)

    logits = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.kl_grad(*logits), self_check_ops.reference("kl_grad")(*logits, 1.0), rtol=0, atol=0)
    (row,) = [row for row in ops.report() if row[:2] == ("kl_grad", "cpu")]
    assert row.backend == "reference"
    assert row.reason.startswith("self-check failed: random [1, 1] torch.float32: ")

    report = json.loads(Path(result.report_path).read_text())
    assert "torch " in report["machine"]
    assert report["seed"] == self_check_ops.SEED
    assert len(report["failing_cases"]["kl_grad"]) > 50
    assert "max error 0.01" in report["failing_cases"]["kl_grad"][0]


def test_a_check_after_switching_off_checks_the_kernel_and_not_its_replacement(wrong_kl_grad):
    self_check.apply(self_check.self_check("cpu"))
    again = self_check.self_check("cpu", force=True)
    assert list(again.failures) == ["kl_grad"]


def test_a_cached_failure_is_switched_off_and_reported_at_each_start(wrong_kl_grad, caplog):
    self_check.ensure_checked("cpu")
    registration.switch_on("cpu")  # as in a new process
    self_check.ensure_checked("cpu")
    assert len(set(caplog.messages)) == 1
    assert len(caplog.messages) == 2
    assert {row.backend for row in ops.report() if row[:2] == ("kl_grad", "cpu")} == {"reference"}


def test_without_a_fault_nothing_is_logged(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        self_check.ensure_checked("cpu")
    assert caplog.messages == []


def result_with(**failures: str) -> SelfCheckResult:
    return SelfCheckResult(passed=(), failures=failures, not_run={}, device="cpu", seconds=0.0)


@pytest.mark.parametrize(
    ("failed", "usable"),
    [
        ([], ["graph", "compiled", "eager"]),
        (["kl_grad"], ["graph", "compiled", "eager"]),
        (["captured"], ["compiled", "compiled", "eager"]),
        (["compiled"], ["eager", "eager", "eager"]),
        (["compiled", "captured"], ["eager", "eager", "eager"]),
    ],
)
def test_a_mode_that_failed_falls_back_to_the_next_slower_one(failed, usable):
    result = result_with(**dict.fromkeys(failed, "wrong"))
    assert [result.usable_mode(mode) for mode in ("graph", "compiled", "eager")] == usable


def test_a_compiler_that_raises_has_failed(monkeypatch):
    def compiled_difference(device):
        raise NotImplementedError("no\ncompiler")

    monkeypatch.setattr(self_check_steps, "compiled_difference", compiled_difference)
    count_op_checks(monkeypatch)
    result = self_check.self_check("cpu", checks=CHECKS)
    assert result.failures == {"compiled": "NotImplementedError: no compiler"}


def test_an_unwritable_report_is_mentioned(monkeypatch, folder):
    (folder / "reports").write_text("a file where the folder should be")
    monkeypatch.setattr(self_check_ops, "failing_cases", lambda op, device: ["wrong"])
    result = self_check.self_check("cpu")
    assert set(result.failures) == set(OPS)
    assert result.summary.endswith("no report could be written")


def test_doctor_shows_the_result_and_verify_runs_everything_and_exits_with_2(
    wrong_kl_grad, compiled_runs, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "250")
    assert cli.main(["doctor"]) == 0
    assert "the first training on this machine runs it" in capsys.readouterr().out

    assert cli.main(["doctor", "--verify"]) == 2
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line for line in lines if "kl_grad" in line and "failed" in line and "max error 0.01" in line]
    assert [line for line in lines if "kl_grad" in line and "cpu" in line and "reference" in line]
    assert [line for line in lines if "compiled" in line and "passed" in line]
    assert [line for line in lines if "captured" in line and "not run" in line and "CUDA device" in line]
    assert err.startswith("fastadaad: self-check on cpu: kl_grad failed")
    assert err.count("\n") == 1
    assert len(compiled_runs) == 1

    assert cli.main(["doctor"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "kl_grad" in line and "failed" in line]
    assert len(compiled_runs) == 1
