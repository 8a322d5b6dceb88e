"""FLOPs and bytes of each recipe's training step, and upper bounds of images/s on GPUs: `python -m bench roofline`.

Computed from the networks' shapes and the vendors' data sheets, not measured. A step takes at least the larger of
FLOPs / peak rate and bytes / memory bandwidth (see flops.py for both); the upper bound of images/s is the inverse.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import torch

from fastadaad import load_model, recipes
from fastadaad.config import TeacherPolicy
from fastadaad.run_config import RunConfig
from fastadaad.runtime.peak_rates import peak_tflops

from .flops import NetworkCost, StepCost, method_cost, network_cost
from .rows import RESULTS, write_rows
from .tables import print_rows


@dataclass(frozen=True, kw_only=True)
class Device:
    """Data sheet of a GPU: dense TFLOP/s by precision, without sparsity, and memory bandwidth."""

    tflops: dict[str, float]
    gb_per_s: float


def _device(card: str, gb_per_s: float) -> Device:
    tflops = peak_tflops(card)
    assert tflops is not None
    return Device(tflops=tflops, gb_per_s=gb_per_s)


DEVICES = {
    "A100-SXM-80GB": _device("A100-SXM4-80GB", gb_per_s=2039.0),
    "H100-SXM": _device("H100 80GB HBM3", gb_per_s=3350.0),
    "H200": _device("H200", gb_per_s=4800.0),
}
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}
POLICIES = (
    "exact",
    "refreshed(every=5)",
    "refreshed(every=8)",
    "refreshed(every=10)",
    "directional(every=3)",
    "directional(every=4)",
    "linearized(top=3,every=10)",
)
NOT_SHOWN = ("kind", "student", "teacher", "method", "num_steps")  # the recipe determines them
# Image shape (C, H, W) of each data set, and number of classes if not 10.
SHAPES = {
    "digits": (1, 8, 8),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "tiny-imagenet": (3, 64, 64),
}
NUM_CLASSES = {"cifar100": 100, "tiny-imagenet": 200}


def best_images_per_s(cost: StepCost, device: Device, precision: str) -> float:
    """Upper bound of images/s, at the peak rate or the full bandwidth, whichever is lower."""
    seconds = max(cost.flops / (1e12 * device.tflops[precision]), cost.num_bytes / (1e9 * device.gb_per_s))
    return 1 / seconds


@cache
def _cost_of(name: str, data: str) -> NetworkCost:
    shape = SHAPES[data]
    with torch.device("meta"):  # weights are not needed
        network = load_model(name, NUM_CLASSES.get(data, 10), in_channels=shape[0])
    return network_cost(network, shape)


def network_costs(config: RunConfig) -> tuple[NetworkCost, NetworkCost | None]:
    """Costs of a recipe's student and teacher."""
    student = _cost_of(config.student.name, config.data.name)
    return student, None if config.teacher is None else _cost_of(config.teacher.name, config.data.name)


def recipe_cost(config: RunConfig, policy: str, precision: str) -> StepCost:
    """Cost of one training step of the recipe under a teacher policy, per image."""
    return method_cost(
        config.method,
        *network_costs(config),
        config.inner.num_steps,
        TeacherPolicy.parse(policy),
        as_program="statistics" in config.method_options,
        batch_size=config.data.batch_size,
        element_bytes=ELEMENT_BYTES[precision],
    )


def rows_of(recipe: str) -> Iterator[dict[str, object]]:
    """Yields one row per policy, device and precision; a recipe without a teacher has only `exact`."""
    config = recipes.get(recipe)
    policies = POLICIES if config.teacher is not None else POLICIES[:1]
    for policy, (name, device), precision in product(policies, DEVICES.items(), ELEMENT_BYTES):
        cost, exact = (recipe_cost(config, text, precision) for text in (policy, "exact"))
        best, best_exact = (best_images_per_s(one, device, precision) for one in (cost, exact))
        yield {
            "kind": "computed",
            "recipe": recipe,
            "student": config.student.name,
            "teacher": "" if config.teacher is None else config.teacher.name,
            "method": config.method,
            "num_steps": config.inner.num_steps,
            "policy": policy,
            "device": name,
            "precision": precision,
            "gflop_per_image": float(f"{cost.flops / 1e9:.5g}"),
            "mb_per_image": float(f"{cost.num_bytes / 1e6:.5g}"),
            "best_images_per_s": float(f"{best:.4g}"),
            "half_images_per_s": float(f"{best / 2:.4g}"),
            "flops_gain": round(exact.flops / cost.flops, 2),
            "gain": round(best / best_exact, 2),
        }


def main(argv: list[str]) -> None:
    """Computes and prints the rows, and overwrites the file."""
    parser = argparse.ArgumentParser(prog="python -m bench roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "roofline.csv", help="CSV file, overwritten")
    options = parser.parse_args(argv)
    rows = [row for recipe in recipes.RECIPES for row in rows_of(recipe)]
    options.output.unlink(missing_ok=True)
    write_rows(options.output, rows, None)
    print_rows(rows, [name for name in rows[0] if name not in NOT_SHOWN], "computed from data sheets, not measured")
