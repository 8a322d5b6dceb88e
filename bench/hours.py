"""Hours of the paper's trainings on GPUs, computed from data sheets: `python -m bench hours`.

The bound is roofline.py's: a step at the card's peak rate or full bandwidth. The second figure is for half that speed.
"""

import argparse
from collections.abc import Iterator

from fastadaad import recipes
from fastadaad.config import TeacherPolicy
from fastadaad.run_config import RunConfig

from .pages import markdown
from .roofline import DEVICES, best_images_per_s, recipe_cost

STUDENTS = {"resnet18": "cifar10-rn18", "mobilenet-v2": "cifar10-mnv2"}
METHODS = ("pgd-at", "trades", "ard", "iad", "rslad", "akd", "adaad", "adaiad")
CARDS = ("A100-SXM-80GB", "H100-SXM")
IMAGES = 50_000  # of CIFAR-10's training set
COLUMNS = (("exact", "tf32"), ("exact", "bf16"), ("directional(every=4)", "bf16"))


def least_hours(config: RunConfig, policy: str, precision: str, card: str) -> float:
    """Returns the lower bound of the hours of a recipe's training, without evaluation."""
    rate = best_images_per_s(recipe_cost(config, policy, precision), DEVICES[card], precision)
    return config.optim.epochs * IMAGES / rate / 3600


def _lines() -> Iterator[tuple[str, str, list[float]]]:
    for (student, recipe), method in ((pair, method) for pair in STUDENTS.items() for method in METHODS):
        config = recipes.get(recipe, method=method)
        through_teacher = config.method_row.through_teacher
        yield (
            student,
            method,
            [
                # A policy has an effect only if the inner loop passes through the teacher.
                least_hours(config, policy if through_teacher else str(TeacherPolicy()), precision, card)
                for card in CARDS
                for policy, precision in COLUMNS
            ],
        )


def hours_table() -> str:
    """Table of each student and method of the paper, and the sum: least hours, and hours at half the bound."""
    lines = [*_lines()]
    columns = [f"{card}, {policy}, {precision}" for card in CARDS for policy, precision in COLUMNS]
    sums = [sum(hours[index] for _, _, hours in lines) for index in range(len(columns))]
    rows = [*lines, ("both", "all eight", sums)]
    cells = [
        [student, f"`{method}`" if method in METHODS else method, *map(_cell, hours)] for student, method, hours in rows
    ]
    return markdown(["student", "method", *columns], cells)


def _cell(hours: float) -> str:
    return f"{hours:.1f} to {2 * hours:.1f}"


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="python -m bench hours", description=__doc__.splitlines()[0]).parse_args(argv)
    print(hours_table())
