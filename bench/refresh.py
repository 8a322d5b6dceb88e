"""Cost of filling the folded copies with the present weights before every search: `python -m bench refresh`."""

import argparse
from collections.abc import Iterator

import torch

from fastadaad import InnerConfig, InnerMaximizer
from fastadaad.inner.folded_cache import folded_copy
from fastadaad.runtime.timing import Spread, alternate, ratios

from .networks import PAIRS
from .tables import rewrite_rows

CPU = torch.device("cpu")
SHOWN = ("pair", "network", "p50_us", "search_p50_ms", "of_search_p50")


def rows(pair_name: str, num_steps: int, rounds: int) -> Iterator[dict[str, object]]:
    """Yields the milliseconds of a search and of the refreshing that it begins with, for student and teacher."""
    pair = PAIRS[pair_name]
    student, teacher = pair.networks(CPU)
    x_natural, labels = pair.batch(CPU)
    maximizer = InnerMaximizer(student, teacher, inner=InnerConfig(num_steps=num_steps), mode="eager")
    times = alternate(
        {
            "search": lambda: maximizer(x_natural, labels),
            "student": lambda: folded_copy(student, x_natural, maximizer.form("student")),
            "teacher": lambda: maximizer.teacher_network(x_natural),
        },
        CPU,
        rounds=rounds,
    )
    for network in ("student", "teacher"):
        yield {
            "pair": pair_name,
            "network": getattr(pair, network),
            "num_steps": num_steps,
            **Spread.of(times[network]).columns("{}_us", 1e3),
            **Spread.of(times["search"]).columns("search_{}_ms"),
            **ratios(times[network], times["search"]).columns("of_search_{}"),
            "n": rounds,
        }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench refresh", description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="demo,small,fashion-mnist,cifar,mobilenet", help="default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps of a search; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each; default: %(default)s")
    options = parser.parse_args(argv)
    groups = (rows(pair, options.num_steps, options.rounds) for pair in options.pairs.split(","))
    rewrite_rows("refresh.csv", groups, CPU, SHOWN, title="refreshing folded copies")
