"""Counters of launches, host syncs, memory and stages, checked against planted behaviour."""

import gc
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import memory, networks
from bench.flops import network_cost
from bench.launches import external_calls, host_synchronisations, operators_dispatched
from bench.limits import convolution, convolutions
from bench.networks import PAIRS, Program, Variant, reference_in, variants_of
from bench.stages import STAGES, stage_milliseconds
from fastadaad import InnerConfig
from fastadaad.cli.arguments import policies as policies_of
from fastadaad.runtime.precision import fp32_switches, tensor_cores
from fastadaad.runtime.resident_memory import resident_growth, tensor_bytes
from fastadaad.training.capturable_optimizer import CapturableOptimizer

CPU = torch.device("cpu")
MIB = 2**20


def test_operators_are_counted_without_views_and_allocations():
    x = torch.ones(4, 4)

    def run():
        y = torch.empty(4, 4)
        torch.add(x, x, out=y)
        return y.t().reshape(2, 8)[:1].mul(2).relu_()

    # add, reshape of a transposed matrix (a copy), mul, relu
    assert operators_dispatched(run) == 4


def test_external_calls_count_outermost_operators():
    weight, x = torch.randn(3, 3, 3, 3), torch.randn(1, 3, 8, 8)
    assert external_calls(lambda: torch.conv2d(x, weight)) == 1
    assert external_calls(lambda: torch.conv2d(x, weight) + x.sum()) == 3


@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_planted_host_sync_is_counted(mode):
    x = torch.ones(3)
    assert host_synchronisations(lambda: x * 2, mode, CPU) == 0
    assert host_synchronisations(lambda: [x.sum().item(), x[x > 0]], mode, CPU) >= 2


def test_memory_of_planted_tensors():
    size = 64 * MIB
    kept = []

    def run():
        temporary = torch.ones(size // 4)
        kept.append(torch.ones(MIB // 4))
        del temporary

    gc.freeze()  # tensors that other tests left may go meanwhile
    try:
        before = tensor_bytes()
        growth = resident_growth(run)
        assert size <= growth < 1.2 * size
        assert tensor_bytes() - before == MIB
    finally:
        gc.unfreeze()


def test_a_bare_convolution_runs_forward_and_gradient_to_the_input():
    module, x = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, device="meta"), torch.randn(2, 4, 8, 8)
    dense = convolution(nn.Conv2d(4, 6, 3, stride=2, padding=1, device="meta"), x)
    with FlopCounterMode(display=False) as counter:
        dense()
    assert counter.get_total_flops() == 2 * (2 * 2 * 16 * 6 * 4 * 9)
    assert operators_dispatched(convolution(module, x)) == 2


def test_bare_convolutions_cover_the_networks():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 2))
    cost = network_cost(network, (1, 8, 8))
    run, flops = convolutions([cost], 5, "channels-last", CPU)
    assert flops == 2 * 5 * (2 * 36 * 2 * 9 + 2 * 16 * 3 * 18)
    assert operators_dispatched(run) == 4


@pytest.mark.parametrize("mode", ["reference", "eager"])
def test_a_slow_optimizer_shows_in_its_stage(mode):
    program = Program(PAIRS["demo"], "adaad", Variant(mode=mode), InnerConfig(num_steps=1), CPU)
    step = program.optimizer.step
    program.optimizer.step = lambda: (time.sleep(0.2), step())
    stages = stage_milliseconds(program, CPU)
    assert tuple(stages) == STAGES
    assert stages["optimizer_ms"] >= 200
    assert program.optimizer.step() is not None  # the patch is removed


def test_policies_are_split_at_commas_outside_brackets():
    texts = ["refreshed(every=10)", "linearized(top=3,every=10)", "refreshed"]
    assert [str(policy) for policy in policies_of(",".join(texts))] == texts


def test_variants_have_distinct_names():
    policies = policies_of("refreshed(every=2)")
    variants = list(variants_of("adaiad", ["eager", "compiled"], policies, ["fp32", "bf16"]))
    names = [variant.name for variant in variants]
    assert names[:3] == ["reference", "reference-no-loop", "reference-lean"]
    assert set(names[3:]) == {
        "distiller-eager", "distiller-eager bf16", "distiller-compiled", "distiller-compiled bf16",
        "distiller-compiled refreshed(every=2) bf16",
    }  # fmt: skip
    assert all(variant.policy.kind == "exact" for variant in variants_of("trades", ["eager"], policies, ["fp32"]))


def test_on_cuda_each_precision_is_compared_with_a_reference_of_equal_arithmetic():
    variants = list(variants_of("trades", ["graph"], [], ["fp32", "tf32", "bf16", "auto"], device_type="cuda"))
    names = [variant.name for variant in variants if variant.is_reference]
    assert names == ["reference", "reference tf32", "reference default"]
    found = {variant.precision: reference_in(names, variant) for variant in variants if not variant.is_reference}
    assert found == {
        "fp32": "reference", "tf32": "reference tf32", "bf16": "reference default", "auto": "reference default",
    }  # fmt: skip
    assert reference_in(["reference"], variants[-1]) == "reference"  # the only one on the CPU
    assert reference_in(["distiller-eager"], variants[-1]) is None


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("default", None)])
def test_a_reference_runs_in_its_arithmetic(precision, allowed, monkeypatch):
    """TF32 in convolutions and matrix products; `default` leaves torch's switches as they are."""
    cuda, before = torch.device("cuda"), fp32_switches()
    monkeypatch.setattr(networks, "tensor_cores", lambda precision, device: tensor_cores(precision, cuda))
    program = Program(
        PAIRS["demo"], "adaad", Variant(mode="reference", precision=precision), InnerConfig(num_steps=1), CPU
    )
    seen = []
    program.teacher.register_forward_hook(lambda *_: seen.append(fp32_switches()))
    program.step()
    program.inner_loop()
    assert seen
    for switches in seen:
        if allowed is None:
            assert switches == before
        else:
            assert [switch == "tf32" for switch in switches[:2]] == [allowed] * 2


@pytest.mark.parametrize(("mode", "fused"), [("eager", True), ("reference", None)])
def test_the_distillers_optimizer_can_be_captured_and_the_authors_is_torchs_default(mode, fused):
    program = Program(PAIRS["demo"], "adaad", Variant(mode=mode), InnerConfig(num_steps=1), CPU)
    assert program.optimizer.defaults["fused"] is fused
    if fused:
        CapturableOptimizer(program.optimizer)


class FakeAllocator:
    """torch.cuda's counters: the first loop reserves a pool of 886 for its graph, and 50 that are free afterwards."""

    def __init__(self) -> None:
        self.pool, self.cached, self.peak, self.loops = 100, 30, 130, 0

    def inner_loop(self) -> None:
        self.loops += 1
        if self.loops == 1:
            self.pool, self.cached = self.pool + 886, self.cached + 50
        self.peak = max(self.peak, self.pool + self.cached)

    def empty_cache(self) -> None:
        self.cached = 0

    def memory_reserved(self, device: torch.device) -> int:
        return self.pool + self.cached

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.peak = self.pool + self.cached

    def max_memory_reserved(self, device: torch.device) -> int:
        return self.peak


def test_peak_memory_on_cuda_counts_the_pool_of_a_graph(monkeypatch):
    allocator = FakeAllocator()
    monkeypatch.setattr(memory, "Program", lambda *_: allocator)
    for name in ("empty_cache", "memory_reserved", "reset_peak_memory_stats", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, getattr(allocator, name))
    arguments = PAIRS["demo"], "adaad", Variant(mode="graph"), InnerConfig(num_steps=1), torch.device("cuda")
    assert memory.peak_bytes_here(*arguments) == 886
    assert allocator.loops == 2
