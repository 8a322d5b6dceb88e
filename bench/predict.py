"""Predicts the time of each recipe's training step on a GPU: `python -m bench predict A100`.

Computed by gpu_model.py from data sheets, stated efficiencies and the counts of bench/results/generated.csv. Nothing
was measured on a GPU. docs/gpu-model.md explains the constants, and says how to prove the model wrong.
"""

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from fastadaad import recipes
from fastadaad.config import TeacherPolicy

from .gpu_model import Card, Overhead, Prediction, predict, shifted
from .roofline import DEVICES, ELEMENT_BYTES, network_costs
from .rows import RESULTS, write_rows
from .tables import print_rows

CARDS = {"A100": "A100-SXM-80GB", "H100": "H100-SXM", "H200": "H200"}
UNITS = {"A100": 108, "H100": 132, "H200": 132}
# Fraction of the peak that the main loop of a large convolution reaches: assumed, lower where the peak is higher.
EFFICIENCY = {"A100": {"fp32": 0.6, "tf32": 0.65, "bf16": 0.65}, "H100": {"fp32": 0.55, "tf32": 0.5, "bf16": 0.5}}
EFFICIENCY["H200"] = EFFICIENCY["H100"]
LAUNCH_S = 2.5e-6  # drain and start of a kernel in a stream or graph
HOST_OPERATION_S = {"compiled": 20e-6, "graph": 0.0}
HOST_STEP_S = {"compiled": 1e-3, "graph": 3e-4}
FIRST_LAYER = "tf32"  # arithmetic of the convolution of the pixels in bf16
ERROR = 1.4  # factor of the error bars on efficiencies and launches
POLICIES = ("exact", "refreshed(every=5)", "refreshed(every=10)")

# Counted in generated code for ResNet-18 <- WRN-16-4 at batch 128 in bf16; tests/bench/test_predict.py compares them
# with bench/results/generated.csv.
BEFORE = Overhead(inner_passes=5.37, outer_passes=9.8, inner_operations=3.79, outer_operations=8.2)
AFTER = Overhead(inner_passes=3.70, outer_passes=9.8, inner_operations=3.26, outer_operations=8.2)

# The CPU of bench/results/step.csv, two cores. The five constants are fitted to its fifteen rows of Distiller.
CPU = Card(
    flops_per_s=250e9,
    bytes_per_s=24e9,
    units=2,
    tile=(16, 16),
    prologue=10,
    convolution_efficiency=0.9,
    memory_efficiency=0.8,
    launch_s=80e-6,
    host_operation_s=0.0,
    host_step_s=0.0,
    element_bytes=4,
)
CPU_OVERHEADS = {
    "eager": Overhead(inner_passes=6.0, outer_passes=8.0, inner_operations=6.0, outer_operations=7.0),
    "compiled": Overhead(inner_passes=3.0, outer_passes=6.0, inner_operations=4.0, outer_operations=5.0),
}


def card(name: str, precision: str, mode: str = "graph") -> Card:
    """Returns the constants of A100, H100 or H200 in fp32, tf32 or bf16, in mode compiled or graph."""
    sheet = DEVICES[CARDS[name]]
    return Card(
        flops_per_s=1e12 * sheet.tflops[precision],
        bytes_per_s=1e9 * sheet.gb_per_s,
        units=UNITS[name],
        tile=(128, 128),
        prologue=48,
        convolution_efficiency=EFFICIENCY[name][precision],
        memory_efficiency=0.8,
        launch_s=LAUNCH_S,
        host_operation_s=HOST_OPERATION_S[mode],
        host_step_s=HOST_STEP_S[mode],
        element_bytes=ELEMENT_BYTES[precision],
        first_layer=card(name, FIRST_LAYER, mode) if precision == "bf16" else None,
    )


def of_recipe(recipe: str, device: Card, overhead: Overhead, policy: str = "exact") -> Prediction:
    """Predicts a training step of a recipe."""
    config = recipes.get(recipe)
    student, teacher = network_costs(config)
    return predict(
        device,
        overhead,
        config.method,
        student,
        teacher,
        config.inner.num_steps,
        TeacherPolicy.parse(policy),
        config.data.batch_size,
    )


def rows_of(name: str) -> Iterator[dict[str, object]]:
    """Yields a row for each recipe, policy, precision and mode on a card."""
    for recipe in recipes.RECIPES:
        config = recipes.get(recipe)
        policies = POLICIES if config.teacher is not None else POLICIES[:1]
        for policy, precision, mode in product(policies, ELEMENT_BYTES, HOST_STEP_S):
            device = card(name, precision, mode)
            likely = of_recipe(recipe, device, AFTER, policy)
            before = of_recipe(recipe, device, BEFORE, policy)
            best, worst = (of_recipe(recipe, shifted(device, factor), AFTER, policy) for factor in (ERROR, 1 / ERROR))
            yield {
                "kind": "computed",
                "card": name,
                "recipe": recipe,
                "student": config.student.name,
                "teacher": "" if config.teacher is None else config.teacher.name,
                "method": config.method,
                "batch_size": config.data.batch_size,
                "policy": policy,
                "precision": precision,
                "mode": mode,
                "ms": _digits(1e3 * likely.step_s),
                "ms_best": _digits(1e3 * best.step_s),
                "ms_worst": _digits(1e3 * worst.step_s),
                "images_per_s": _digits(config.data.batch_size / likely.step_s),
                "convolutions_ms": _digits(1e3 * likely.convolutions_s),
                "bytes_ms": _digits(1e3 * likely.bytes_s),
                "launches_ms": _digits(1e3 * likely.launches_s),
                "host_ms": _digits(1e3 * likely.host_s),
                "ms_before_fusions": _digits(1e3 * before.step_s),
            }


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def main(argv: list[str]) -> None:
    """Prints the rows of the cards; with all of them, overwrites the file."""
    parser = argparse.ArgumentParser(prog="python -m bench predict", description=__doc__.splitlines()[0])
    parser.add_argument(
        "card", nargs="*", choices=(*CARDS, []), metavar="CARD", help=f"{', '.join(CARDS)}; default: all"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "predict.csv", help="CSV file, overwritten")
    options = parser.parse_args(argv)
    rows = [row for name in options.card or CARDS for row in rows_of(name)]
    if not options.card:
        options.output.unlink(missing_ok=True)
        write_rows(options.output, rows, None)
    print_rows(rows, [name for name in rows[0] if name not in ("kind", "student", "teacher")], "computed, not measured")
