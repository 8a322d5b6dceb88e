"""`python -m bench scaling`: what communication leaves of the speed of 8 to 512 GPUs.

Computed from data sheets and assumed latencies; nothing here is measured. A step is its computing on one GPU at best
(roofline.py) and then its all-reduces (communication.py): nothing overlaps, and no process is later than another.
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
from .readme import rewritten, rows_of
from .roofline import DEVICES, ELEMENT_BYTES, NUM_CLASSES, SHAPES, best_images_per_s
from .scaling_table import plot, tables
from .timing import RESULTS, write_rows

DOCS = RESULTS.parents[1] / "docs"
METHOD, NUM_STEPS, PRECISION = "adaad", 10, "tf32"
NUM_GPUS = (1, 8, 16, 32, 64, 128, 256, 512)
POLICIES = ("exact", "refreshed(every=10)")
BATCH_NORMS: tuple[BatchNorm, ...] = ("local", "sync")
# Images of a step on each GPU, by the number of GPUs: as many on each, or as many on all together.
SCALINGS: dict[str, Callable[[int], int]] = {
    "weak": lambda num_gpus: 128,
    "strong": lambda num_gpus: 4096 // num_gpus,
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A student and a teacher by name, and the images that they see."""

    student: str
    teacher: str
    image_shape: tuple[int, int, int]
    num_classes: int

    def load(self, name: str) -> nn.Module:
        """Without memory for its weights."""
        with torch.device("meta"):
            return load_model(name, self.num_classes, in_channels=self.image_shape[0])

    @cached_property
    def costs(self) -> tuple[NetworkCost, ...]:
        """Of student and teacher."""
        return tuple(network_cost(self.load(name), self.image_shape) for name in (self.student, self.teacher))


def of_recipe(name: str) -> Work:
    config = recipes.get(name)
    assert config.teacher is not None
    data = config.data.name
    return Work(
        student=config.student.name,
        teacher=config.teacher.name,
        image_shape=SHAPES[data],
        num_classes=NUM_CLASSES.get(data, 10),
    )


# imagenet is no recipe: an example of larger images.
WORKS = {name: of_recipe(name) for name in ("cifar10-rn18", "cifar10-mnv2", "cifar100-rn18", "tiny-imagenet-rn18")} | {
    "imagenet": Work(
        student="timm/resnet18", teacher="timm/wide_resnet50_2", image_shape=(3, 224, 224), num_classes=1000
    )
}


def compute_seconds(work: Work, policy: str, num_images: int, device: str) -> float:
    """A step of one GPU, at best."""
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
    """A step of each of NUM_GPUS; efficiency: images/s of a GPU over those of one alone, in the same scaling."""
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
    """One row per cluster, policy, batch-norm, scaling and number of GPUs."""
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
    """Compute and write the file anew, or draw what it has."""
    parser = argparse.ArgumentParser(prog="python -m bench scaling", description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS / "scaling.csv", help="CSV file, written anew")
    parser.add_argument(
        "--draw", action="store_true", help="docs/scaling.png and the tables of docs/scaling.md instead"
    )
    options = parser.parse_args(argv)
    if options.draw:
        draw(options.output)
        return
    rows = [row for name in WORKS for row in computed_rows(name)]
    options.output.unlink(missing_ok=True)
    write_rows(options.output, rows, None)
    print(f"computed from data sheets, not measured: {len(rows)} rows in {options.output}")
