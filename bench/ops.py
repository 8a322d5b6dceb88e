"""Times each operation's registered backend against plain torch, eager and compiled: `python -m bench ops`.

`--static` prints the resources of the compiled Triton kernels instead; it needs no GPU.
"""

import argparse
import importlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastadaad import ops
from fastadaad.runtime.timing import Spread, alternate, ratios

from .limits import Run, copy_gb_per_s
from .rows import RESULTS, hardware, write_rows
from .tables import print_rows

REFERENCE, COMPILED = "reference", "torch.compile"

BATCH_SIZE = 128
NUM_IMAGES = 10_000
NUM_CLASSES = (10, 100, 1_000, 21_843)
BATCHES_OF_IMAGES = ((128, 32), (512, 32), (128, 64))  # images, pixels on a side
ROUNDS = 20
SHOWN = (
    "op", "shape", "implementation", "p50_us", "p20_us", "p80_us", "gb_per_s", "of_copy",
    "times_reference", "times_compiled",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One operation on one shape, and its minimum of bytes: each input read once, each output written once.

    Inputs that fit into a cache may come from there, so that a case can exceed the bandwidth of copying.
    """

    op: str
    shape: str
    arguments: tuple
    num_bytes: int


def num_bytes(*tensors: Tensor) -> int:
    """Total bytes of the tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def logit_cases(device: torch.device) -> Iterator[Case]:
    """Yields kl_grad and cross_entropy_grad on fp32 logits [128, N]."""
    for num_classes in NUM_CLASSES:
        shape = f"{BATCH_SIZE}x{num_classes}"
        student_logits, teacher_logits = torch.randn(2, BATCH_SIZE, num_classes, device=device)
        labels = torch.randint(num_classes, (BATCH_SIZE,), device=device)
        logits_bytes, value_bytes = num_bytes(student_logits), num_bytes(student_logits[:, 0])
        yield Case("kl_grad", shape, (student_logits, teacher_logits, 1.0), 4 * logits_bytes + value_bytes)
        arguments = student_logits, labels
        yield Case("cross_entropy_grad", shape, arguments, 2 * logits_bytes + num_bytes(labels) + value_bytes)


def pixel_cases(device: torch.device) -> Iterator[Case]:
    """Yields the steps, the start and crop_flip on batches of square images with three channels."""
    for batch_size, side in BATCHES_OF_IMAGES:
        shape = f"{batch_size}x3x{side}x{side}"
        x_natural = torch.rand(batch_size, 3, side, side, device=device)
        noise, pixels = torch.randn_like(x_natural), num_bytes(x_natural)
        yield Case("linf_step_", shape, (x_natural.clone(), x_natural, noise, 2 / 255, 8 / 255, 0.0, 1.0), 4 * pixels)
        yield Case("l2_step_", shape, (x_natural.clone(), x_natural, noise, 0.2, 0.5, 0.0, 1.0), 4 * pixels)
        start = x_natural.clone(), x_natural, noise, 0.001, -math.inf, math.inf
        yield Case("random_start_", shape, start, 3 * pixels)
        images = torch.randint(256, (NUM_IMAGES, side, side, 3), dtype=torch.uint8, device=device)
        indices = torch.randint(NUM_IMAGES, (batch_size,), device=device)
        top, left = torch.randint(9, (2, batch_size), device=device)
        flip = top > left
        crops = num_bytes(images[:batch_size], indices, top, left, flip) + pixels
        yield Case("crop_flip", shape, (images, indices, top, left, flip, 4), crops)


def linf_step_between_bounds(case: Case) -> Run:
    """Returns an optimised l_inf step in plain torch: bounds computed before the loop, everything in place."""
    x_adv, x_natural, grad_x, step_size, epsilon, lower, upper = case.arguments
    low, high = (x_natural - epsilon).clamp(lower, upper), (x_natural + epsilon).clamp(lower, upper)
    sign = torch.empty_like(grad_x)
    return lambda: torch.clamp_(x_adv.add_(torch.sign(grad_x, out=sign), alpha=step_size), low, high)


def implementations(case: Case, device: torch.device) -> dict[str, Run]:
    """Returns by name the reference in plain torch, its torch.compile version and the backend in use, if different.

    All share their arguments, of which x_adv is mutated but stays in its ball.
    """
    stem = case.op.removesuffix("_")
    reference = getattr(importlib.import_module(f"fastadaad.ops.{stem}"), f"{stem}_ref")
    backend = {(row.op, row.device): row.backend for row in ops.report()}[stem, device.type]
    registered = getattr(torch.ops.fastadaad, case.op)
    compiled = torch.compile(reference, fullgraph=True, dynamic=False)
    runs = {REFERENCE: lambda: reference(*case.arguments), COMPILED: lambda: compiled(*case.arguments)}
    if case.op == "linf_step_":
        runs["careful torch"] = linf_step_between_bounds(case)
    if backend != REFERENCE:
        runs[backend] = lambda: registered(*case.arguments)
    return runs


def rows_of(case: Case, copy_rate: float, device: torch.device) -> Iterator[dict[str, object]]:
    """Yields one CSV row per implementation; `copy_rate` in GB/s."""
    torch.compiler.reset()  # each case is compiled for its own shape
    timings = alternate(implementations(case, device), device, rounds=ROUNDS)
    for name, milliseconds in timings.items():
        spread = Spread.of(milliseconds)
        rate = case.num_bytes / spread.p50 / 1e6
        yield {
            "op": case.op,
            "shape": case.shape,
            "device": device.type,
            "implementation": name,
            **spread.columns("{}_us", scale=1e3),
            "n": spread.n,
            "bytes": case.num_bytes,
            "gb_per_s": round(rate, 3),
            "copy_gb_per_s": round(copy_rate, 3),
            "of_copy": round(rate / copy_rate, 4),
            "times_reference": round(ratios(timings[REFERENCE], milliseconds).p50, 3),
            "times_compiled": round(ratios(timings[COMPILED], milliseconds).p50, 3),
        }


def measure(device: torch.device, output: Path) -> None:
    """Times every case, prints the table and appends its rows to a CSV file."""
    copy_rate = copy_gb_per_s(device)
    torch.manual_seed(0)
    cases = [*logit_cases(device), *pixel_cases(device)]
    rows = [row for case in cases for row in rows_of(case, copy_rate, device)]
    print_rows(rows, SHOWN, title=hardware(device))
    write_rows(output, rows, device)


def main(argv: list[str]) -> None:
    """Parses the options, then times the operations or compiles the kernels."""
    parser = argparse.ArgumentParser(prog="python -m bench ops", description=__doc__)
    parser.add_argument("--static", action="store_true", help="resources of the Triton kernels; needs no GPU")
    parser.add_argument("--json", action="store_true", help="with --static: machine-readable")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "ops.csv", help="CSV file that the rows are added to")
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV file")
    options = parser.parse_args(argv)
    if options.static:
        if os.environ.get("TRITON_INTERPRET"):
            parser.error("TRITON_INTERPRET is set: unset it, --static compiles the kernels")
        from . import static, static_cases  # imports triton

        static.report(static_cases.CASES, options.json)
    else:
        if options.rewrite:
            options.output.unlink(missing_ok=True)
        measure(torch.device(options.device), options.output)
