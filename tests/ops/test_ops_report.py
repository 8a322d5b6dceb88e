"""report() states the backends that run, and all operations compile into one graph with torch.compile."""

import os
import subprocess
import sys

import pytest
import torch
from implementations import CPP
from pixels import draw

from fastadaad import ops
from fastadaad.ops import registration

STEMS = {"crop_flip", "cross_entropy_grad", "kl_grad", "l2_step", "linf_step", "random_start"}


def report_with(choice: str) -> subprocess.CompletedProcess:
    """Prints report() in a new process with FASTADAAD_KERNELS set to `choice`."""
    program = "from fastadaad import ops\nfor row in ops.report(): print(*row, sep='|')"
    environment = os.environ | {"FASTADAAD_KERNELS": choice}
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)


def test_one_row_for_each_operation_and_kind_of_device():
    rows = ops.report()
    assert {(row.op, row.device) for row in rows} == {(stem, device) for stem in STEMS for device in ("cpu", "cuda")}
    assert len(rows) == 12
    assert all(row.reason for row in rows)


@pytest.mark.parametrize("row", ops.report(), ids=lambda row: f"{row.op}-{row.device}")
def test_backend_is_the_one_in_the_dispatcher(row):
    op = f"fastadaad::{row.op}"
    op = op if hasattr(torch.ops.fastadaad, row.op) else f"{op}_"
    own_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(op, row.device.upper())
    assert own_kernel == (row.backend != "reference")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CompositeExplicitAutograd")


@pytest.mark.slow
def test_reference_on_request():
    result = report_with("reference")
    rows = [line.split("|") for line in result.stdout.splitlines()]
    assert len(rows) == 12, result.stderr
    assert all(row[2:] == ["reference", "FASTADAAD_KERNELS=reference"] for row in rows)


@pytest.mark.slow
def test_unknown_choice_is_refused():
    result = report_with("fast")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == "ValueError: FASTADAAD_KERNELS is 'fast': set it to auto or reference"


def test_a_switched_off_operation_uses_its_reference(monkeypatch):
    arguments = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    name, reference = registration._references["kl_grad"]
    calls = []
    counted = lambda *arguments: calls.append(arguments) or reference(*arguments)  # noqa: E731
    monkeypatch.setitem(registration._references, "kl_grad", (name, counted))
    compiled = torch.compile(lambda x, y: ops.kl_grad(x, y), fullgraph=True, backend="aot_eager")
    expected, before = compiled(*arguments), ops.report()
    registration.switch_off("kl_grad", "cpu", "it failed")
    try:
        torch.testing.assert_close(compiled(*arguments), expected)  # compiled before the operation was switched off
        ops.kl_grad(*arguments)
        assert len(calls) == 2
        changed = [row for row in ops.report() if row not in before]
        assert changed == [ops.OpBackend("kl_grad", "cpu", "reference", "it failed")]
    finally:
        registration.switch_on("cpu")
    ops.kl_grad(*arguments)
    assert len(calls) == 2
    assert ops.report() == before


def all_operations(student_logits, teacher_logits, labels, images, indices, corners, flip):
    """Calls every operation."""
    x_natural = ops.crop_flip(images, indices, corners, corners, flip, 2)
    x_adv = ops.random_start_(torch.empty_like(x_natural), x_natural, x_natural.sin(), 0.01)
    kl, grad_student_logits, grad_teacher_logits = ops.kl_grad(student_logits, teacher_logits, 2.0)
    loss, grad_logits = ops.cross_entropy_grad(student_logits, labels)
    grad_x = x_natural.cos() * (kl - loss)[:, None, None, None]
    ops.linf_step_(x_adv, x_natural, grad_x, 0.02, 0.1)
    ops.l2_step_(x_adv, x_natural, grad_x, 0.2, 0.3)
    return x_adv, grad_student_logits, grad_teacher_logits, grad_logits


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_operations_compile_into_one_graph(backend):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8, generator=generator)
    student_logits, teacher_logits = torch.randn(2, 4, 10, generator=generator)
    whole = torch.arange(4)
    arguments = (student_logits, teacher_logits, whole, images, whole + 2, whole, whole % 2 == 0)
    expected = all_operations(*arguments)
    compiled = torch.compile(all_operations, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(*arguments), expected, rtol=0, atol=1e-6)


def test_number_of_threads_does_not_change_the_bits():
    tensors = draw(64, 3, 32, 32)
    logits = torch.randn(2, 500, 100, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    outcomes = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            x_adv = tensors[0].clone()
            ops.l2_step_(ops.linf_step_(x_adv, *tensors[1:], 0.02, 0.1), *tensors[1:], 0.3, 0.5)
            outcomes.append((x_adv, *ops.kl_grad(*logits)))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(outcomes[0], outcomes[1], rtol=0, atol=0)


@pytest.mark.parametrize("run", CPP)
def test_kernels_refuse_unsupported_dtypes_of_logits(run):
    with pytest.raises(RuntimeError, match=r"logits must be torch.float32.*convert them"):
        run("kl_grad", torch.zeros(2, 3).double(), torch.zeros(2, 3), 1.0)
