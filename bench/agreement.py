"""Pixels and kl of the search against those of the plain program with the same seed: `python -m bench agreement`."""

import argparse
from collections.abc import Iterator

import torch

from fastadaad import InnerConfig, ops

from .networks import PAIRS, Program, Variant
from .tables import rewrite_rows

CPU = torch.device("cpu")
SHOWN = ("pair", "seed", "num_steps", "pixels_that_differ", "kl_difference")


def rows(pair_name: str, num_steps: int, seeds: int) -> Iterator[dict[str, object]]:
    """Yields for each seed the fraction of pixels that differ by more than 1e-6, and the relative difference of kl."""
    for seed in range(seeds):
        found, kl = [], []
        for mode in ("reference", "eager"):
            program = Program(PAIRS[pair_name], "adaad", Variant(mode=mode), InnerConfig(num_steps=num_steps), CPU)
            torch.manual_seed(seed)
            result = program.inner_loop()
            x_adv = result if isinstance(result, torch.Tensor) else result.x_adv
            with torch.no_grad():
                logits = program.student.eval()(x_adv), program.teacher.eval()(x_adv)
            found.append(x_adv)
            kl.append(ops.kl_grad(*logits)[0].double().sum().item())
        yield {
            "pair": pair_name,
            "seed": seed,
            "num_steps": num_steps,
            "pixels_that_differ": round(((found[0] - found[1]).abs() > 1e-6).double().mean().item(), 5),
            "kl_difference": float(f"{abs(kl[1] / kl[0] - 1):.2g}"),
        }


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench agreement", description=__doc__)
    parser.add_argument("--pairs", default="small,cifar", help="default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps; default: %(default)s")
    parser.add_argument("--seeds", type=int, default=2, help="starts of each pair; default: %(default)s")
    options = parser.parse_args(argv)
    groups = (rows(pair, options.num_steps, options.seeds) for pair in options.pairs.split(","))
    rewrite_rows("agreement.csv", groups, CPU, SHOWN, title="the search against the plain program")
