"""TFLOP/s of a training: counted against formulas, and against the card's data sheet."""

import copy

import pytest
import torch
from networks import images_and_labels, student_and_teacher

from bench.flops import method_cost, network_cost
from fastadaad import Distiller, InnerConfig, ThreatModel
from fastadaad.config import TeacherPolicy
from fastadaad.inner import maximizer
from fastadaad.runtime.peak_rates import PEAK_TFLOPS, peak_tflops
from fastadaad.training.flop_rate import FlopRate, step_flops

NUM_STEPS, IMAGE = 4, (3, 8, 8)
INNER = InnerConfig(threat_model=ThreatModel(epsilon=0.1), step_size=0.03, num_steps=NUM_STEPS)


def distiller(method: str = "adaad", **options) -> Distiller:
    student, teacher = student_and_teacher()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    return Distiller(student, teacher, method=method, inner=INNER, optimizer=optimizer, mode="eager", **options)


@pytest.mark.parametrize(
    ("method", "policy"), [("adaad", "exact"), ("adaad", "refreshed(every=3)"), ("rslad", "exact"), ("trades", "exact")]
)
def test_the_count_is_that_of_the_passes_through_both_networks(method, policy):
    step, (x_natural, labels) = distiller(method, teacher_policy=policy), images_and_labels(4)
    costs = network_cost(step.student, IMAGE), network_cost(step.teacher, IMAGE)
    expected = method_cost(method, *costs, NUM_STEPS, TeacherPolicy.parse(policy)).flops
    assert step_flops(step, x_natural, labels, 0) == expected


def test_awp_costs_a_second_outer_loss_from_its_first_epoch_on():
    step, (x_natural, labels) = distiller(awp_gamma=0.01, awp_begin=2), images_and_labels(4)
    before, after = (step_flops(step, x_natural, labels, epoch) for epoch in (1, 2))
    costs = network_cost(step.student, IMAGE), network_cost(step.teacher, IMAGE)
    without_search = method_cost("adaad", *costs, 0).flops
    assert after - before == without_search


def test_counting_changes_nothing_of_the_training():
    step, (x_natural, labels) = distiller(), images_and_labels(4)
    states = [copy.deepcopy(network.state_dict()) for network in (step.student, step.teacher)]
    random_state = torch.get_rng_state()
    step_flops(step, x_natural, labels, 0)
    for before, network in zip(states, (step.student, step.teacher), strict=True):
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in step.student.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("card", "precision", "text"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", "150 TFLOP/s, 24.0% of the bf16 peak"),  # of two cards: 150 / (2 * 312)
        ("NVIDIA H100 80GB HBM3", "tf32", "150 TFLOP/s, 15.2% of the tf32 peak"),
        ("NVIDIA H100 PCIe", "fp16", "150 TFLOP/s, 9.9% of the fp16 peak"),
        ("NVIDIA GeForce RTX 4090", "fp32", "150 TFLOP/s, 90.8% of the fp32 peak"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp32", "150 TFLOP/s"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", "150 TFLOP/s"),
        ("Abacus", "bf16", "150 TFLOP/s"),
    ],
)
def test_the_share_is_that_of_the_data_sheet_of_the_card(monkeypatch, card, precision, text):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    # A CPU refuses tf32; the step is counted, not run in it.
    monkeypatch.setattr(maximizer, "resolved", lambda precision, device, **folds: precision)
    step, (x_natural, labels) = distiller(precision=precision), images_and_labels(4)
    rate = FlopRate(step, torch.device("cuda", 0), num_ranks=2)
    images_per_s = 150e12 / step_flops(step, x_natural, labels, 0)
    assert rate.describe(images_per_s, x_natural, labels, 0) == text


def test_rates_of_tensor_cores_are_no_lower_than_those_of_fp32():
    for rates in PEAK_TFLOPS.values():
        assert rates["fp32"] <= rates["tf32"] <= rates["bf16"] == rates["fp16"]
    assert peak_tflops("NVIDIA A10") != peak_tflops("NVIDIA A100-PCIE-40GB")
    assert peak_tflops("NVIDIA L4") != peak_tflops("NVIDIA L40S")
    assert peak_tflops("NVIDIA L40") is None
