"""Defaults on a CUDA device are fast: precision, capture, algorithms, no waits."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from networks import images_and_labels, student_and_teacher, tiny_network
from rich.console import Console
from tiny_runs import gpu_run
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.memory import peak_bytes_here
from bench.networks import PAIRS, Program, Variant
from fastadaad import Distiller, InnerConfig, evaluate
from fastadaad.config import ThreatModel
from fastadaad.inner import layout
from fastadaad.inner.folded_cache import Form, folded_copy
from fastadaad.run_config import OptimConfig
from fastadaad.runtime import machine_cache
from fastadaad.training.trainer import Trainer

INNER = InnerConfig(threat_model=ThreatModel(epsilon=8 / 255), step_size=2 / 255, num_steps=2)
DEVICE = torch.device("cuda", 0)


class Convolutions(TorchDispatchMode):
    """Records dtype, TF32 switch, `benchmark` and layout of each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []
        self.allow_tf32: list[bool] = []
        self.benchmark: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.dtypes.append(args[0].dtype)
            self.allow_tf32.append(torch.backends.cudnn.conv.fp32_precision == "tf32")
            self.benchmark.append(torch.backends.cudnn.benchmark)
        return func(*args, **(kwargs or {}))


def networks_on_gpu() -> list[torch.nn.Module]:
    return [network.to(DEVICE) for network in student_and_teacher()]


def batch_on_gpu() -> list[torch.Tensor]:
    return [tensor.to(DEVICE) for tensor in images_and_labels(16)]


def distiller(make_optimizer: Callable = torch.optim.SGD, **options) -> Distiller:
    student, teacher = networks_on_gpu()
    optimizer = make_optimizer(student.parameters(), lr=0.1, fused=True)
    return Distiller(student, teacher, inner=INNER, optimizer=optimizer, **options)


@contextmanager
def host_sync_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_networks_are_in_bf16_with_first_convolutions_in_tf32():
    step = distiller(mode="eager")
    step.step(*batch_on_gpu())  # makes the folded copies
    before = torch.backends.cudnn.conv.fp32_precision
    with Convolutions() as seen:
        result = step.step(*batch_on_gpu())
    assert (result.precision.student, result.precision.teacher) == ("bf16", "bf16")
    assert seen.dtypes.count(torch.float32) == seen.dtypes.count(torch.bfloat16)  # the networks have two each
    assert all(seen.allow_tf32)
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_strict_fp32_is_a_choice():
    step = distiller(mode="eager", precision="fp32")
    step.step(*batch_on_gpu())  # makes the folded copies, which are compared in float64 too
    with Convolutions() as seen:
        step.step(*batch_on_gpu())
    assert set(seen.dtypes) == {torch.float32}
    assert not any(seen.allow_tf32)


def test_an_evaluation_searches_in_tf32_and_decides_in_fp32():
    network = tiny_network(1).to(DEVICE).eval()
    x_natural, labels = batch_on_gpu()
    evaluate(network, (x_natural, labels), ("natural", "pgd2"))
    with Convolutions() as seen:
        evaluate(network, (x_natural, labels), ("pgd2",))
    assert set(seen.dtypes) == {torch.float32}
    assert any(seen.allow_tf32)
    assert not seen.allow_tf32[-1]  # the last convolution is the network's own


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_whole_steps_of_fused_adam_are_captured(kind):
    step = distiller(kind, mode="graph", precision="fp32")
    first = [parameter.detach().clone() for parameter in step.student.parameters()]
    losses = [step.step(*batch_on_gpu()).loss.item() for _ in range(3)]
    assert all(torch.tensor(losses).isfinite())
    assert not any(map(torch.equal, first, step.student.parameters()))
    assert step.optimizer.state_dict()["state"][0]["step"].item() == 3


def test_the_benchmarks_graph_mode_captures_whole_steps(recwarn):
    pair = replace(PAIRS["demo"], batch_size=4)
    program = Program(pair, "adaad", Variant(mode="graph"), INNER, DEVICE)
    program.step()
    assert not [warning for warning in recwarn if "not the whole step" in str(warning.message)]
    assert program.distiller._captured is not None


def test_the_benchmarks_memory_is_what_is_reserved():
    """A graph's pool is reserved, in whole segments, and hardly allocated between two replays."""
    pair = replace(PAIRS["demo"], batch_size=4)
    peak = peak_bytes_here(pair, "adaad", Variant(mode="graph"), INNER, DEVICE)
    assert peak > 0
    assert peak % 2**21 == 0


def test_a_layout_is_measured_for_each_precision(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTADAAD_CACHE", str(tmp_path))
    network, x = tiny_network(1).to(DEVICE), batch_on_gpu()[0]
    for precision in ("fp32", "bf16"):
        folded_copy(network, x, Form(precision=precision))
    assert len(machine_cache.entries(layout.SECTION)) == 2


def run_on_gpu(folder, **changes) -> Trainer:
    optim = OptimConfig(epochs=1, learning_rate=0.05, ema_decay=0.9)
    config = gpu_run(folder, **{"optim": optim, "mode": "eager"} | changes)
    return Trainer(config, folder / "run", Console(file=io.StringIO(), width=200))


def test_a_step_of_a_run_with_a_running_average_waits_for_nothing(tmp_path):
    run = run_on_gpu(tmp_path)
    x_natural, labels = next(iter(run.data.train.epoch(0)))

    def step() -> None:
        result = run.distiller.step(x_natural, labels, generator=run.state.generator)
        run.state.add_loss(result.loss)

    step()
    with host_sync_is_an_error():
        step()


def test_a_run_lets_cudnn_measure_its_algorithms(tmp_path):
    run = run_on_gpu(tmp_path)
    before = torch.backends.cudnn.benchmark
    with Convolutions() as seen:
        run.train()
    assert any(seen.benchmark)
    assert torch.backends.cudnn.benchmark == before


def test_a_training_writes_what_it_ran_in(tmp_path):
    run = run_on_gpu(tmp_path)
    run.train()
    assert "student bf16, teacher bf16 (first convolutions TF32), eager mode on cuda:0" in run.console.file.getvalue()


def test_networks_and_results_stay_on_the_device(tmp_path):
    result = distiller(mode="eager").step(*batch_on_gpu())
    assert all(tensor.is_cuda for tensor in tree_leaves([result.loss, result.x_adv]))
