"""Accuracy of students trained with the networks in fp32 and in bf16, over several seeds: `python -m bench precisions`.

Runs on the CPU, which may lack instructions for bf16: convolutions and matrix products of bf16 numbers are computed in
fp32 and rounded to bf16, as tensor cores do. A run that is already in the CSV file is not repeated.
"""

import argparse
import csv
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastadaad import recipes
from fastadaad.config import PrecisionConfig
from fastadaad.run_config import RunConfig
from fastadaad.training.run import train

from .rows import RESULTS, write_rows
from .tables import print_rows

PRECISIONS = {
    "fp32": PrecisionConfig(student="fp32", teacher="fp32"),
    "bf16 teacher": PrecisionConfig(student="fp32", teacher="bf16"),
    "bf16 student": PrecisionConfig(student="bf16", teacher="fp32"),
    "bf16": PrecisionConfig(student="bf16", teacher="bf16"),
}
ATTACKS = ("natural", "pgd20")
aten = torch.ops.aten
PRODUCTS = {
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.addmm.default,
    aten.mm.default,
}


class Bf16ByFp32(TorchDispatchMode):
    """Context manager in which products of bf16 numbers are sums in fp32, rounded to bf16."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in PRODUCTS or not any(_is_bf16(value) for value in args):
            return func(*args, **(kwargs or {}))
        result = func(*[value.float() if _is_bf16(value) else value for value in args], **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            return result.bfloat16()
        return tuple(None if value is None else value.bfloat16() for value in result)


def _is_bf16(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


def config_of(options: argparse.Namespace, seed: int, precision: str) -> RunConfig:
    """Configuration of one training, on the CPU."""
    config = recipes.get(options.recipe, method=options.method)
    return replace(
        config,
        seed=seed,
        device="cpu",
        mode="eager",
        precision=PRECISIONS[precision],
        data=replace(config.data, num_samples=options.num_samples),
        evaluation=replace(config.evaluation, attacks=ATTACKS, num_images=options.num_images),
    )


def known_runs(path: Path) -> set[tuple[str, ...]]:
    """Returns recipe, method, precision and seed of the rows in a CSV file."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {(row["recipe"], row["method"], row["precision"], row["seed"]) for row in csv.DictReader(file)}


def spread(rows: list[dict[str, str]]) -> list[dict[str, object]]:
    """Mean and standard deviation over the seeds of each accuracy, by precision, and the difference to fp32."""
    accuracies: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        for attack in ATTACKS:
            accuracies[row["precision"], attack].append(100 * float(row[attack]))
    return [
        {
            "precision": precision,
            "attack": attack,
            "seeds": len(values),
            "mean": f"{mean(values):.2f}",
            "deviation": f"{stdev(values):.2f}" if len(values) > 1 else "",
            "to fp32": f"{mean(values) - mean(accuracies['fp32', attack]):+.2f}",
        }
        for (precision, attack), values in accuracies.items()
        if accuracies.get(("fp32", attack))
    ]


def main(argv: list[str]) -> None:
    """Trains the missing students, one row each, and prints the means."""
    parser = argparse.ArgumentParser(prog="python -m bench precisions", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="fashion-mnist-small")
    parser.add_argument("--method", default="adaad")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-samples", type=int, default=2500, help="training images")
    parser.add_argument("--num-images", type=int, default=4000, help="test images of the evaluation")
    parser.add_argument("--folder", type=Path, default=Path("runs/precisions"), help="run folders")
    parser.add_argument("--output", type=Path, default=RESULTS / "precisions.csv")
    options = parser.parse_args(argv)
    for seed, precision in product(options.seeds, PRECISIONS):
        if (options.recipe, options.method, precision, str(seed)) in known_runs(options.output):
            continue
        config = config_of(options, seed, precision)
        folder = options.folder / f"{options.recipe} {options.method} {precision} {seed}".replace(" ", "-")
        with Bf16ByFp32():
            results = train(config, folder, resume=True)
        row = {"recipe": options.recipe, "method": options.method, "precision": precision, "seed": seed}
        row["num_samples"] = options.num_samples
        row |= {result.attack: result.accuracy for result in results} | {"num_images": results[0].num_images}
        write_rows(options.output, [row], torch.device("cpu"))
    with options.output.open(newline="") as file:
        rows = spread([row for row in csv.DictReader(file) if row["recipe"] == options.recipe])
    print_rows(rows, list(rows[0]), "accuracy in %, bf16 emulated on the CPU")
