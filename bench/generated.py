"""Counts what torch.compile generates for the training step on CUDA: `python -m bench generated`.

Operations, launches, bytes, layout copies, memory and machine code of the inner step under each teacher policy, and of
the outer loss. Counted from the code, not measured: without a GPU it is generated on a pretend one.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fastadaad import Distiller, InnerConfig, InnerMaximizer

from . import pretend
from .generated_code import GeneratedCode, recorded
from .networks import PAIRS, Pair
from .rows import RESULTS, write_rows
from .tables import print_rows

TARGETS = (80, 90)
GENERATED_PAIRS = {
    "cifar": replace(PAIRS["cifar"], batch_size=128),
    "paper": PAIRS["paper"],
    "mobilenet": replace(PAIRS["cifar"], student="mobilenet-v2", batch_size=128),
}
REUSING = ("refreshed(every=2)", "directional(every=2)", "linearized(top=3,every=2)")
SHOWN = (
    "pair", "policy", "part", "target", "device_operations", "convolutions", "generated_launches", "kernels", "gb",
    "layout_copies", "peak_mib", "max_registers", "spills", "narrow_kernels",
)  # fmt: skip
SETTINGS = {"precision": "bf16", "layout": "channels_last", "mode": "compiled"}

Part = tuple[str, str, GeneratedCode, float]  # policy, name, code, peak memory in MiB


def peak_mib(run: Callable[[], object]) -> float:
    """Peak of the allocator's memory during a run, above what was allocated before it."""
    run()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)


def query_part(pair: Pair) -> Iterator[Part]:
    """Yields the inner step that queries the teacher, of policy exact."""
    maximizer, x_natural = _maximizer(pair, "exact", num_steps=1)
    with recorded() as codes:
        maximizer(x_natural)
    (code,) = codes
    yield "exact", "query", code, peak_mib(lambda: maximizer(x_natural))


def reuse_part(pair: Pair, policy: str) -> Iterator[Part]:
    """Yields the inner step without the teacher, after an uncompiled step that queries it."""
    maximizer, x_natural = _maximizer(pair, policy, num_steps=2)
    maximizer._query = maximizer._policy.query
    with recorded() as codes:
        maximizer(x_natural)
    (code,) = codes
    yield policy, "reuse", code, peak_mib(lambda: maximizer(x_natural))


def _maximizer(pair: Pair, policy: str, num_steps: int) -> tuple[InnerMaximizer, Tensor]:
    device = torch.device("cuda")
    inner = InnerConfig(num_steps=num_steps)
    maximizer = InnerMaximizer(*pair.networks(device), inner=inner, teacher_policy=policy, **SETTINGS)
    return maximizer, pair.batch(device)[0]


def outer_parts(pair: Pair) -> Iterator[Part]:
    """Yields the outer loss and its backward pass; the memory is that of a step without inner steps' code."""
    device = torch.device("cuda")
    student, teacher = pair.networks(device)
    x_natural, labels = pair.batch(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    distiller = Distiller(student, teacher, optimizer=optimizer, inner=InnerConfig(num_steps=1), **SETTINGS)
    distiller.maximizer._query = distiller.maximizer._policy.query
    with recorded() as codes:
        distiller.step(x_natural, labels)
    peak = peak_mib(lambda: distiller.step(x_natural, labels))
    for code in codes:
        yield "exact", f"outer {'backward' if 'tangents' in code.text else 'forward'}", code, peak


def columns(code: GeneratedCode, batch_size: int) -> dict[str, object]:
    """Returns the counts of one graph."""
    return {
        "device_operations": len(code.operations),
        "convolutions": len(code.convolutions),
        "generated_launches": len(code.launches),
        "kernels": len(code.kernels),
        "gb": round(code.num_bytes / 1e9, 4),
        "layout_copies": len(code.layout_copies(batch_size)),
        "max_registers": max(one.registers for one in code.machine_codes),
        "spills": sum(one.spills for one in code.machine_codes),
        "narrow_kernels": " ".join(
            sorted({name.removeprefix("triton_").rstrip("0123456789_") for name in code.narrow_kernels})
        ),
    }


def rows_of(pair_name: str, query_only: bool = False) -> Iterator[dict[str, object]]:
    """Yields the row of each compiled graph of a pair, or of the query alone, on the present CUDA device."""
    pair = GENERATED_PAIRS[pair_name]
    makers = [
        partial(query_part, pair),
        *(partial(reuse_part, pair, policy) for policy in REUSING),
        partial(outer_parts, pair),
    ]
    makers = makers[:1] if query_only else makers
    parts = [part for make in makers for part in make()]
    major, minor = torch.cuda.get_device_capability()
    for policy, part, code, peak in parts:
        yield {
            "kind": "computed",
            "pair": pair_name,
            "student": pair.student,
            "teacher": pair.teacher,
            "batch_size": pair.batch_size,
            **SETTINGS,
            "policy": policy,
            "part": part,
            "target": f"sm_{major}{minor}",
            **columns(code, pair.batch_size),
            "peak_mib": peak,
            "torch": torch.__version__,
        }


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench generated", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=GENERATED_PAIRS, action="append", help="networks; default: all")
    parser.add_argument(
        "--target",
        type=int,
        choices=TARGETS,
        action="append",
        help="compute capability; default: all, or the GPU's own",
    )
    parser.add_argument("--query", action="store_true", help="only the inner step that queries the teacher")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "generated.csv", help="CSV file that rows are added to"
    )
    parser.add_argument("--rewrite", action="store_true", help="overwrite the CSV file")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Counts on the GPU, or in one process per target on a pretend one; writes and prints the rows."""
    options = _parse(argv)
    if options.rewrite:
        options.output.unlink(missing_ok=True)
    if not torch.cuda.is_available():
        reason = pretend.why_not()
        if reason:
            raise SystemExit(f"{reason}")
        query = ["--query"] if options.query else []
        for target in options.target or TARGETS:
            for pair in options.pair or GENERATED_PAIRS:
                pretend.run_benchmark(["generated", "--pair", pair, "--output", str(options.output), *query], target)
        return
    with pretend.without_values() if pretend.is_pretended() else nullcontext():
        for pair in options.pair or GENERATED_PAIRS:
            rows = list(rows_of(pair, options.query))
            write_rows(options.output, rows, None)
            print_rows(rows, SHOWN, "counted in generated code, not measured")
