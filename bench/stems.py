"""Gradient signs in bf16 with the first convolution in fp32 or TF32, against fp32: `python -m bench stems`.

TF32 is emulated on the CPU: the factors of the first convolution's products, forward and backward, are rounded to 10
bits of the mantissa, to nearest even, and the sums are in fp32.
"""

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastadaad import InnerConfig, InnerMaximizer, recipes
from fastadaad.inner import precision_report
from fastadaad.training.build import build_student, build_teacher
from fastadaad.training.data import training_data

from .networks import PAIRS
from .rows import RESULTS, write_rows
from .tables import print_rows

CPU = torch.device("cpu")
DROPPED_BITS = 13  # of the 23 bits of an fp32 mantissa


def rounded_to_tf32(x: Tensor) -> Tensor:
    """Rounds fp32 numbers to 10 bits of the mantissa, to nearest, ties to even."""
    bits = x.contiguous().view(torch.int32)
    half_less_one = (1 << (DROPPED_BITS - 1)) - 1
    return ((bits + half_less_one + ((bits >> DROPPED_BITS) & 1)) & -(1 << DROPPED_BITS)).view(torch.float32)


class _ProductInTF32(torch.autograd.Function):
    """weight [K, P] times patches [B, P, L], with the gradient of the patches."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, patches: Tensor) -> Tensor:
        ctx.weight = rounded_to_tf32(weight)
        return torch.matmul(ctx.weight, rounded_to_tf32(patches))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, torch.matmul(ctx.weight.t(), rounded_to_tf32(gradient))


class StemsInTF32(TorchFunctionMode):
    """Computes the first convolution of folded copies in bf16, their only product in fp32, in emulated TF32."""

    def __init__(self) -> None:
        super().__init__()
        self.num_products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.matmul and args[0].dtype == torch.float32:
            self.num_products += 1
            with torch._C.DisableTorchFunction():
                return _ProductInTF32.apply(*args)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Networks and a batch, on which a search takes its gradients."""

    name: str
    student: nn.Module
    teacher: nn.Module | None
    method: str
    inner: InnerConfig
    x_natural: Tensor
    labels: Tensor


def recipe_cases(recipe: str, num_images: int) -> Iterator[Case]:
    """Yields the recipe's new student with its shipped teacher, and the teacher by itself under pgd-at."""
    config = recipes.get(recipe)
    data = training_data(config, CPU)
    assert config.teacher is not None
    student, teacher = build_student(config, data, CPU), build_teacher(config.teacher, data, CPU)
    images, labels = [], []
    for x_natural, own in data.train.epoch(0):
        images.append(x_natural)
        labels.append(own)
        if sum(map(len, images)) >= num_images:
            break
    batch = {"x_natural": torch.cat(images)[:num_images], "labels": torch.cat(labels)[:num_images]}
    both = {"inner": config.inner, **batch}
    yield Case(name=f"{recipe}, new student", student=student, teacher=teacher, method="adaad", **both)
    yield Case(name=f"{recipe}, teacher alone", student=teacher, teacher=None, method="pgd-at", **both)


def random_case(pair_name: str, num_images: int) -> Case:
    """Returns a pair of PAIRS with random weights, on random pixels."""
    pair = PAIRS[pair_name]
    student, teacher = pair.networks(CPU)
    x_natural, labels = pair.batch(CPU)
    return Case(
        name=f"{pair.student} from {pair.teacher}, random",
        student=student,
        teacher=teacher,
        method="adaad",
        inner=InnerConfig(),
        x_natural=x_natural[:num_images],
        labels=labels[:num_images],
    )


def rows(case: Case, num_starts: int) -> Iterator[dict[str, object]]:
    """Yields one row per precision of the first convolution: gradients with fp32's sign, over several starts."""
    maximizer = InnerMaximizer(
        case.student, case.teacher, method=case.method, inner=case.inner, precision="bf16", layout="contiguous"
    )
    precision_report.measure(maximizer, case.x_natural, case.labels, seed=0)  # makes the copies
    stems: dict[str, AbstractContextManager[Any]] = {"fp32": nullcontext(), "TF32": StemsInTF32()}
    for name, stem in stems.items():
        with stem:
            reports = [
                precision_report.measure(maximizer, case.x_natural, case.labels, seed=seed)
                for seed in range(num_starts)
            ]
        assert not isinstance(stem, StemsInTF32) or stem.num_products, "no first convolution was a product"
        same = [report.same_sign for report in reports]
        yield {
            "networks": case.name,
            "method": case.method,
            "first_convolution": name,
            "same_sign": round(sum(same) / num_starts, 6),
            "least": round(min(same), 6),
            "num_images": len(case.x_natural),
            "num_starts": num_starts,
        }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench stems", description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, default=128, help="images of a batch; default: %(default)s")
    parser.add_argument("--num-starts", type=int, default=5, help="starts of each case; default: %(default)s")
    options = parser.parse_args(argv)
    path, found = RESULTS / "stems.csv", []
    path.unlink(missing_ok=True)
    of_recipes = (case for recipe in ("demo", "fashion-mnist") for case in recipe_cases(recipe, options.num_images))
    for case in chain(of_recipes, [random_case("cifar", options.num_images // 8)]):  # which takes the longest
        measured = list(rows(case, options.num_starts))
        write_rows(path, measured, CPU)
        found += measured
    print_rows(found, tuple(found[0]), title="pixel gradients in bf16 with the sign that fp32 gives them")
