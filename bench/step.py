"""Times one training iteration of `Distiller` against the plain program of its method: `python -m bench step`.

Each variant trains its own networks, from the same weights on the same images. The variants of a method alternate in
one process, together with a large matrix product and the networks' convolutions alone. Compilation happens in the
warm-up and is not timed. Stages, counts and memory come from separate passes.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from fastadaad import InnerConfig
from fastadaad.cli.arguments import policies
from fastadaad.runtime.timing import Spread, alternate, ratios
from fastadaad.training.plain_program import REFERENCES

from .details import COLUMNS, Details, details
from .flops import method_cost, network_cost
from .limits import MATRIX_FLOPS, fastest_convolutions, matrix_product
from .networks import PAIRS, Pair, Program, reference_in, variants_of
from .rows import RESULTS, hardware, write_rows
from .tables import print_rows

MATRIX_PRODUCT, CONVOLUTIONS = "matrix product", "convolutions"
SHOWN = (
    "pair", "method", "batch_shape", "variant", "images_per_s", "ratio_p50", "ratio_p20", "ratio_p80",
    "of_convolutions", "of_matrix_product", "overhead_p50", "inner_peak_of_reference", "host_synchronisations",
)  # fmt: skip


def fits(name: str, program: Program) -> bool:
    """Runs and compiles a first step; returns False if it exceeds the GPU's memory."""
    try:
        program.step()
    except torch.cuda.OutOfMemoryError:
        print(f"{name}: out of memory at batch size {len(program.x_natural)}")
        return False
    return True


def row(
    pair_name: str,
    pair: Pair,
    method: str,
    program: Program,
    timings: Mapping[str, list[float]],
    convolution_flops: int,
) -> dict[str, object]:
    """Returns the CSV row of one variant, without its details.

    Args:
        pair_name: Key of PAIRS.
        pair: Networks and batch.
        method: Name of the method.
        program: The variant.
        timings: Milliseconds of each variant and of the bare runs, by name.
        convolution_flops: FLOPs of the bare convolutions.
    """
    milliseconds, inner, variant = timings[program.variant.name], program.inner, program.variant
    spread = Spread.of(milliseconds)
    cost = method_cost(
        method,
        network_cost(program.student, pair.image_shape),
        network_cost(program.teacher, pair.image_shape),
        inner.num_steps,
        variant.policy,
        as_program=True,
    )
    flops = pair.batch_size * cost.flops

    def fraction_of(name: str, limit_flops: int) -> float:
        """FLOP/s of the step over those of a bare run, in the same rounds."""
        return round(flops / limit_flops * ratios(timings[name], milliseconds).p50, 4)

    baseline = reference_in(timings, variant)
    faster = ratios(timings[baseline] if baseline else milliseconds, milliseconds)
    return {
        "pair": pair_name,
        "student": pair.student,
        "teacher": pair.teacher,
        "method": method,
        "batch_shape": "x".join(map(str, program.x_natural.shape)),
        "num_steps": inner.num_steps,
        "variant": variant.name,
        "mode": variant.mode,
        "policy": str(variant.policy),
        "precision": variant.precision,
        "images_per_s": round(1e3 * pair.batch_size / spread.p50, 2),
        **(faster.columns("ratio_{}") if baseline else dict.fromkeys(faster.columns("ratio_{}"), "")),
        **spread.columns("{}_ms"),
        "n": spread.n,
        "gflop": round(flops / 1e9, 3),
        "gflop_per_s": round(flops / spread.p50 / 1e6, 2),
        "of_convolutions": fraction_of(CONVOLUTIONS, convolution_flops),
        "of_matrix_product": fraction_of(MATRIX_PRODUCT, MATRIX_FLOPS),
    }


def measure(pair_name: str, pair: Pair, method: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """Returns the rows of a method's variants; a variant that does not fit into memory has none."""
    device, inner = options.device, InnerConfig(num_steps=options.num_steps)
    torch.compiler.reset()  # drops graphs of earlier methods: torch.compile keeps only a few per function
    variants = variants_of(method, options.modes, options.policies, options.precisions, device_type=device.type)
    programs = {variant.name: Program(pair, method, variant, inner, device) for variant in variants}
    programs = {name: program for name, program in programs.items() if fits(name, program)}
    costs = [network_cost(network, pair.image_shape) for network in pair.networks(torch.device("cpu"))]
    bare_convolutions, convolution_flops = fastest_convolutions(costs, pair.batch_size, device)
    runs = {name: program.step for name, program in programs.items()}
    runs |= {CONVOLUTIONS: bare_convolutions, MATRIX_PRODUCT: matrix_product(device)}
    timings = alternate(runs, device, rounds=options.rounds, warmup=0)
    known: Details = details(pair_name, pair, method, programs, inner, device) if options.details else {}
    empty = dict.fromkeys(COLUMNS, "")
    return [
        row(pair_name, pair, method, program, timings, convolution_flops) | empty | known.get(name, {})
        for name, program in programs.items()
    ]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__.splitlines()[0])
    words = {"type": lambda text: text.split(",")}
    parser.add_argument("--pair", choices=PAIRS, action="append", help="networks; default: small and cifar")
    parser.add_argument("--method", choices=(*REFERENCES, "all"), action="append", help="default: adaad")
    parser.add_argument("--modes", default="eager,compiled", help="modes of Distiller; default: %(default)s", **words)
    parser.add_argument("--policies", default=[], type=policies, help="teacher policies, each in the last mode")
    parser.add_argument("--precisions", help="of both networks; default: fp32, and on CUDA fp32,tf32,auto", **words)
    parser.add_argument(
        "--batch-sizes", type=lambda text: [int(size) for size in text.split(",")], help="default: see PAIRS"
    )
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="measurements per variant; default: %(default)s")
    parser.add_argument("--no-details", dest="details", action="store_false", help="times only")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "step.csv", help="CSV file that the rows are added to")
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV file")
    options = parser.parse_args(argv)
    options.precisions = options.precisions or (["fp32", "tf32", "auto"] if options.device.type == "cuda" else ["fp32"])
    return options


def main(argv: list[str]) -> None:
    options = _parse(argv)
    if options.rewrite:
        options.output.unlink(missing_ok=True)
    names, rows = options.method or ["adaad"], []
    for pair_name, method in product(options.pair or ("small", "cifar"), REFERENCES if "all" in names else names):
        for batch_size in options.batch_sizes or [PAIRS[pair_name].batch_size]:
            pair = replace(PAIRS[pair_name], batch_size=batch_size)
            measured = measure(pair_name, pair, method, options)
            write_rows(options.output, measured, options.device)  # at once: an interruption keeps them
            rows += measured
    print_rows(rows, SHOWN, title=f"one training iteration on {hardware(options.device)}")
