"""The model of a step's time, against counts and against the measured rows of this CPU."""

import csv

import pytest

from bench.flops import network_cost
from bench.gpu_model import Card, outputs_bytes, predict, product_s, shifted
from bench.predict import AFTER as OVERHEAD
from bench.predict import CARDS, CPU, CPU_OVERHEADS, card, of_recipe, rows_of
from bench.rows import RESULTS
from fastadaad import load_model
from fastadaad.config import TeacherPolicy
from fastadaad.recipes import RECIPES

STEPS = [row for row in csv.DictReader((RESULTS / "step.csv").open(newline="")) if row["mode"] in CPU_OVERHEADS]


@pytest.mark.slow
@pytest.mark.parametrize("row", STEPS, ids=lambda row: f"{row['pair']}-{row['method']}-{row['mode']}")
def test_the_model_predicts_the_measured_steps_of_the_cpu_within_a_quarter(row):
    batch_size, *shape = map(int, row["batch_shape"].split("x"))
    student, teacher = (
        network_cost(load_model(row[name], in_channels=shape[0]), shape) for name in ("student", "teacher")
    )
    predicted = predict(
        CPU,
        CPU_OVERHEADS[row["mode"]],
        row["method"],
        student,
        teacher,
        int(row["num_steps"]),
        TeacherPolicy.parse(row["policy"]),
        batch_size,
    )
    assert 1e3 * predicted.step_s == pytest.approx(float(row["p50_ms"]), rel=0.25)


def test_the_counts_are_those_of_the_generated_code():
    with (RESULTS / "generated.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["pair"] == "cifar" and row["target"] == "sm_80"]
    counted = {(row["policy"], row["part"]): row for row in rows}
    networks = [network_cost(load_model(name), (3, 32, 32)) for name in ("resnet18", "wrn-16-4")]
    moved = [outputs_bytes(card("A100", "bf16"), network, 128) for network in networks]
    query, reuse = counted["exact", "query"], counted["refreshed(every=2)", "reuse"]
    assert OVERHEAD.inner_passes == pytest.approx(1e9 * float(query["gb"]) / sum(moved), rel=0.02)
    assert OVERHEAD.inner_passes == pytest.approx(1e9 * float(reuse["gb"]) / moved[0], rel=0.02)
    assert OVERHEAD.inner_operations == pytest.approx(int(query["device_operations"]) / (21 + 17), rel=0.02)
    outer = [counted["exact", f"outer {part}"] for part in ("forward", "backward")]
    student_bytes = 1e9 * sum(float(row["gb"]) for row in outer) - OVERHEAD.inner_passes / 2 * moved[1]
    assert 2 * OVERHEAD.outer_passes == pytest.approx(student_bytes / moved[0], rel=0.02)
    operations = sum(int(row["device_operations"]) for row in outer) - OVERHEAD.inner_operations / 2 * 17
    assert 2 * OVERHEAD.outer_operations == pytest.approx(operations / 21, rel=0.02)


def test_a_large_product_reaches_the_efficiency_and_a_small_one_does_not():
    device = card("A100", "bf16")
    ideal = 2 * 8192**3 / (device.flops_per_s * device.convolution_efficiency)
    assert product_s(device, 8192, 8192, 8192) == pytest.approx(ideal, rel=0.1)
    # One tile on one of 108 multiprocessors.
    ideal = 2 * 128 * 128 * 8192 / (device.flops_per_s * device.convolution_efficiency)
    assert product_s(device, 128, 128, 8192) > 20 * ideal


def test_the_host_decides_if_it_is_slower():
    device = card("H100", "bf16", "compiled")
    prediction = of_recipe("demo", device, OVERHEAD)
    assert prediction.host_s > prediction.device_s
    assert prediction.step_s == prediction.host_s


def test_error_bars_enclose_the_prediction():
    for row in rows_of("A100"):
        assert row["ms_best"] < row["ms"] < row["ms_worst"], row


def test_every_recipe_and_card_has_computed_rows():
    found = list(rows_of("H200"))
    assert {row["recipe"] for row in found} == RECIPES.keys()
    assert {row["kind"] for row in found} == {"computed"}


@pytest.mark.parametrize("name", CARDS)
def test_a_policy_saves_time(name):
    device = card(name, "bf16")
    exact, refreshed = (
        of_recipe("cifar10-rn18", device, OVERHEAD, policy) for policy in ("exact", "refreshed(every=5)")
    )
    assert refreshed.step_s < 0.5 * exact.step_s


def test_shifted_moves_everything_that_is_assumed():
    device = card("A100", "bf16")
    slower = shifted(device, 0.5)
    assert isinstance(slower, Card)
    assert slower.convolution_efficiency == device.convolution_efficiency / 2
    assert slower.launch_s == 2 * device.launch_s
