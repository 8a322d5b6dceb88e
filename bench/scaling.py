"""Efficiency of 8 to 512 GPUs with communication: `python -m bench scaling`.

Computed from data sheets and assumed latencies, not measured. The time of a step is the lower bound of its computation
on one GPU (roofline.py) plus its all-reduces (communication.py), without overlap and without delays between ranks.
`--draw` makes the picture and the tables of docs/scaling.md from the rows instead.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path

import torch
from torch import nn

from fastadaad import load_model, recipes
from fastadaad.config import BatchNorm, TeacherPolicy

from .communication import CLUSTERS, Cluster, all_reduce_seconds, messages
from .flops import OUTER_PASSES, NetworkCost, method_cost, network_cost
from .pages import rewritten, rows_of
from .roofline import DEVICES, ELEMENT_BYTES, NUM_CLASSES, SHAPES, best_images_per_s
from .rows import RESULTS, write_rows
from .scaling_table import plot, tables

DOCS = RESULTS.parents[1] / "docs"
METHOD, NUM_STEPS, PRECISION = "adaad", 10, "tf32"
NUM_GPUS = (1, 8, 16, 32, 64, 128, 256, 512)
POLICIES = ("exact", "refreshed(every=10)")
BATCH_NORMS: tuple[BatchNorm, ...] = ("local", "sync")
# Images of a step on each GPU, by the number of GPUs: a constant number per GPU, or a constant total.
SCALINGS: dict[str, Callable[[int], int]] = {
    "weak": lambda num_gpus: 128,
    "strong": lambda num_gpus: 4096 // num_gpus,
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Names of student and teacher, and the shape of their images."""

    student: str
    teacher: str
    image_shape: tuple[int, int, int]
    num_classes: int

    def load(self, name: str) -> nn.Module:
        """Builds a network on the meta device, without memory for its weights."""
        with torch.device("meta"):
            return load_model(name, self.num_classes, in_channels=self.image_shape[0])

    @cached_property
    def costs(self) -> tuple[NetworkCost, ...]:
        """Costs of student and teacher."""
        return tuple(network_cost(self.load(name), self.image_shape) for name in (self.student, self.teacher))


def of_recipe(name: str) -> Work:
    """Networks and images of a recipe."""
    config = recipes.get(name)
    assert config.teacher is not None
    data = config.data.name
    return Work(
        student=config.student.name,
        teacher=config.teacher.name,
        image_shape=SHAPES[data],
        num_classes=NUM_CLASSES.get(data, 10),
    )


# imagenet is not a recipe but an example of larger images.
WORKS = {name: of_recipe(name) for name in ("cifar10-rn18", "cifar10-mnv2", "cifar100-rn18", "tiny-imagenet-rn18")} | {
    "imagenet": Work(
        student="timm/resnet18", teacher="timm/wide_resnet50_2", image_shape=(3, 224, 224), num_classes=1000
    )
}


def compute_seconds(work: Work, policy: str, num_images: int, device: str) -> float:
    """Lower bound of the seconds that one GPU computes in a step."""
    cost = method_cost(
        METHOD,
        *work.costs,
        NUM_STEPS,
        TeacherPolicy.parse(policy),
        batch_size=num_images,
        element_bytes=ELEMENT_BYTES[PRECISION],
    )
    return num_images / best_images_per_s(cost, DEVICES[device], PRECISION)


def steps(
    work: Work, policy: str, batch_norm: BatchNorm, cluster: Cluster, scaling: str
) -> Iterator[dict[str, object]]:
    """Yields the columns of a step for each of NUM_GPUS.

    efficiency is images/s per GPU over images/s of a single GPU in the same scaling.

    Args:
        work: Networks and images.
        policy: Teacher policy.
        batch_norm: "local" or "sync".
        cluster: GPUs and their links.
        scaling: Key of SCALINGS.
    """
    sizes = messages(work.load(work.student), batch_norm, OUTER_PASSES[METHOD])
    alone = SCALINGS[scaling](1) / compute_seconds(work, policy, SCALINGS[scaling](1), cluster.device)
    for num_gpus in NUM_GPUS:
        num_images = SCALINGS[scaling](num_gpus)
        compute = compute_seconds(work, policy, num_images, cluster.device)
        exchange = sum(all_reduce_seconds(size, num_gpus, cluster) for size in sizes)
        images_per_s = num_images / (compute + exchange)
        yield {
            "num_gpus": num_gpus,
            "images_per_gpu": num_images,
            "all_reduces": len(sizes),
            "mb": _rounded(sum(sizes) / 1e6),
            "compute_ms": _rounded(1e3 * compute),
            "exchange_ms": _rounded(1e3 * exchange),
            "images_per_s": _rounded(num_gpus * images_per_s),
            "efficiency": round(images_per_s / alone, 4),
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def computed_rows(name: str) -> Iterator[dict[str, object]]:
    """Yields one row per cluster, policy, batch-norm, scaling and number of GPUs."""
    work = WORKS[name]
    for (cluster, links), policy, batch_norm, scaling in product(CLUSTERS.items(), POLICIES, BATCH_NORMS, SCALINGS):
        setting = {
            "kind": "computed",
            "recipe": name,
            "student": work.student,
            "teacher": work.teacher,
            "method": METHOD,
            "num_steps": NUM_STEPS,
            "precision": PRECISION,
            "cluster": cluster,
            "policy": policy,
            "batch_norm": batch_norm,
            "scaling": scaling,
        }
        yield from (setting | step for step in steps(work, policy, batch_norm, links, scaling))


def draw(output: Path) -> None:
    rows = rows_of(output)
    plot(DOCS / "scaling.png", rows)
    page = DOCS / "scaling.md"
    page.write_text(rewritten(page.read_text(), tables(rows), "scaling"))


def main(argv: list[str]) -> None:
    """Computes the rows and overwrites the file, or draws its rows."""
    parser = argparse.ArgumentParser(prog="python -m bench scaling", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.csv", help="CSV file, overwritten")
    parser.add_argument(
        "--draw", action="store_true", help="draw docs/scaling.png and write the tables of docs/scaling.md instead"
    )
    options = parser.parse_args(argv)
    if options.draw:
        draw(options.output)
        return
    rows = [row for name in WORKS for row in computed_rows(name)]
    options.output.unlink(missing_ok=True)
    write_rows(options.output, rows, None)
    print(f"computed from data sheets, not measured: {len(rows)} rows in {options.output}")
