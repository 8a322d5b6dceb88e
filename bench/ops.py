"""`python -m bench ops`: time of each operation and shape, the registered backend against the reference in plain torch.

`--static` prints the resources of the compiled Triton kernels instead; it needs no GPU.
"""

import argparse
import importlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.table import Table

from fastadaad import ops

from .tables import print_table
from .timing import RESULTS, Timing, alternate, hardware, write_rows

BATCH_SIZE = 128
NUM_IMAGES = 10_000
NUM_CLASSES = (10, 100, 1_000, 21_843)
SIDES = (32, 64)

Case = tuple[str, str, tuple]  # name in fastadaad.ops, shape in words, positional arguments


def logit_cases(device: torch.device) -> Iterator[Case]:
    """kl_grad and cross_entropy_grad on a batch of fp32 logits."""
    for num_classes in NUM_CLASSES:
        shape = f"{BATCH_SIZE}x{num_classes}"
        student_logits, teacher_logits = torch.randn(2, BATCH_SIZE, num_classes, device=device)
        labels = torch.randint(num_classes, (BATCH_SIZE,), device=device)
        yield "kl_grad", shape, (student_logits, teacher_logits, 1.0)
        yield "cross_entropy_grad", shape, (student_logits, labels)


def pixel_cases(device: torch.device) -> Iterator[Case]:
    """The steps, the start and crop_flip on a batch of square images with three channels."""
    for side in SIDES:
        shape = f"{BATCH_SIZE}x3x{side}x{side}"
        x_natural = torch.rand(BATCH_SIZE, 3, side, side, device=device)
        noise = torch.randn_like(x_natural)
        yield "linf_step_", shape, (x_natural.clone(), x_natural, noise, 2 / 255, 8 / 255, 0.0, 1.0)
        yield "l2_step_", shape, (x_natural.clone(), x_natural, noise, 0.2, 0.5, 0.0, 1.0)
        yield "random_start_", shape, (x_natural.clone(), x_natural, noise, 0.001, -math.inf, math.inf)
        images = torch.randint(256, (NUM_IMAGES, side, side, 3), dtype=torch.uint8, device=device)
        indices = torch.randint(NUM_IMAGES, (BATCH_SIZE,), device=device)
        top, left = torch.randint(9, (2, BATCH_SIZE), device=device)
        yield "crop_flip", shape, (images, indices, top, left, top > left, 4)


def time_case(case: Case, device: torch.device) -> dict[str, Timing]:
    """Timings of the backend in use and of "reference", with the same arguments (a mutated x_adv stays in its ball)."""
    name, _, arguments = case
    stem = name.removesuffix("_")
    reference = getattr(importlib.import_module(f"fastadaad.ops.{stem}"), f"{stem}_ref")
    backend = {(row.op, row.device): row.backend for row in ops.report()}[stem, device.type]
    registered = getattr(torch.ops.fastadaad, name)
    variants = {"reference": lambda: reference(*arguments)}
    if backend != "reference":
        variants[backend] = lambda: registered(*arguments)
    return alternate(variants, device)


def rows_of(case: Case, device: torch.device) -> Iterator[dict[str, object]]:
    """One CSV row for each backend timed."""
    for backend, timing in time_case(case, device).items():
        yield {"op": case[0], "shape": case[1], "device": device.type, "backend": backend, **timing.columns()}


def print_rows(rows: list[dict[str, object]], device: torch.device) -> None:
    """The rows as a table, with the speed of each backend relative to the reference of the same case."""
    table = Table("op", "shape", "backend", "median ms", "p20", "p80", "x reference", title=hardware(device))
    for row in rows:
        if row["backend"] == "reference":
            reference_ms = row["median_ms"]
        times = [f"{row[column]:.4f}" for column in ("median_ms", "p20_ms", "p80_ms")]
        table.add_row(row["op"], row["shape"], row["backend"], *times, f"{reference_ms / row['median_ms']:.2f}")
    print_table(table)


def measure(device: torch.device, output: Path) -> None:
    """Time every case, print the table and append its rows to a CSV file."""
    torch.manual_seed(0)
    cases = [*logit_cases(device), *pixel_cases(device)]
    rows = [row for case in cases for row in rows_of(case, device)]
    print_rows(rows, device)
    write_rows(output, rows, device)


def main(argv: list[str]) -> None:
    """Parse the options and measure or compile."""
    parser = argparse.ArgumentParser(prog="python -m bench ops", description=__doc__)
    parser.add_argument("--static", action="store_true", help="resources of the Triton kernels; needs no GPU")
    parser.add_argument("--json", action="store_true", help="with --static: machine-readable")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "ops.csv", help="CSV file that the rows are added to")
    options = parser.parse_args(argv)
    if options.static:
        if os.environ.get("TRITON_INTERPRET"):
            parser.error("TRITON_INTERPRET is set: unset it, --static compiles the kernels")
        from . import static, static_cases  # only here is triton needed

        static.report(static_cases.CASES, options.json)
    else:
        measure(torch.device(options.device), options.output)
