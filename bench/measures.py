"""Times AdaAD's inner loop with cumulative measures, from the plain program to ours: `python -m bench measures`.

Each variant adds one measure to the variant before it. Variants alternate in one process; compilation is not timed.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch

from fastadaad import InnerConfig, InnerMaximizer
from fastadaad.inner import folded_cache, folded_layers
from fastadaad.runtime.timing import Spread, alternate, ratios

from .networks import PAIRS, Pair, Program, Variant
from .pages import Row, markdown
from .rows import RESULTS, write_rows
from .tables import print_rows

REFERENCE = "plain program"
UNFOLDED = {"fold": lambda network, *_, **__: (network, "left unfolded")}
NO_PRODUCT = {"MAX_PATCH": 0}
SHOWN = ("pair", "measure", "times_plain_p50", "times_before_p50", "p50_ms")
# Attributes replaced in folded_cache and folded_layers while the copies are folded, and InnerMaximizer's arguments.
MEASURES: dict[str, tuple[dict, dict, dict]] = {
    "no weight gradients kept, analytic logit gradients, fused step": (UNFOLDED, {}, {}),
    "batch-norm folded": ({}, NO_PRODUCT, {"layout": "contiguous"}),
    "layout measured": ({}, NO_PRODUCT, {}),
    "convolution of the pixels as a product": ({}, {}, {}),
    "one compiled graph a step": ({}, {}, {"mode": "compiled"}),
}


def loops(pair: Pair, inner: InnerConfig, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yields name and inner loop of each variant, each on its own copy of the networks."""
    yield REFERENCE, Program(pair, "adaad", Variant(mode="reference"), inner, device).inner_loop
    x_natural, _ = pair.batch(device)
    for name, (cache_off, layers_off, arguments) in MEASURES.items():
        maximizer = InnerMaximizer(
            *map(copy.deepcopy, pair.networks(device)), inner=inner, precision="fp32", **arguments
        )
        with ExitStack() as switches, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unfolded networks are intended here
            for module, off in ((folded_cache, cache_off), (folded_layers, layers_off)):
                for attribute, value in off.items():
                    switches.enter_context(mock.patch.object(module, attribute, value))
            maximizer(x_natural)
        yield name, lambda maximizer=maximizer: maximizer(x_natural)


def rows(pair_name: str, rounds: int, device: torch.device) -> Iterator[dict[str, object]]:
    pair = PAIRS[pair_name]
    timings = alternate(dict(loops(pair, InnerConfig(), device)), device, rounds=rounds, warmup=1)
    before = timings[REFERENCE]
    for name, milliseconds in timings.items():
        yield {
            "pair": pair_name,
            "measure": name,
            **ratios(timings[REFERENCE], milliseconds).columns("times_plain_{}"),
            **ratios(before, milliseconds).columns("times_before_{}"),
            **Spread.of(milliseconds).columns("{}_ms"),
            "n": len(milliseconds),
        }
        before = milliseconds


def measures_table(measured: list[Row]) -> str:
    """Returns Markdown: milliseconds and gains of each measure, with the pairs of networks side by side."""
    pairs = list(dict.fromkeys(row["pair"] for row in measured))
    lines = []
    for name in dict.fromkeys(row["measure"] for row in measured):
        cells = [name]
        for row in (row for row in measured if row["measure"] == name):
            gain, in_all = float(row["times_before_p50"]), float(row["times_plain_p50"])
            cells += [f"{float(row['p50_ms']):.0f}", f"{gain:.2f}", f"{in_all:.2f}"]
        lines.append(cells)
    columns = [f"{pair}, {what}" for pair in pairs for what in ("ms", "times the previous", "times the plain program")]
    return markdown(("measure", *columns), lines)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench measures", description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, action="append", help="default: fashion-mnist and cifar")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "measures.csv", help="CSV file, overwritten")
    options = parser.parse_args(argv)
    measured = [
        row for pair in options.pair or ("fashion-mnist", "cifar") for row in rows(pair, options.rounds, options.device)
    ]
    options.output.unlink(missing_ok=True)
    write_rows(options.output, measured, options.device)
    print_rows(measured, SHOWN)
