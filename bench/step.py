"""`python -m bench step`: one AdaAD training iteration of `Distiller` against the plain loop of bench/reference.py.

Each variant trains networks of its own, from the same weights on the same images; the variants alternate in one
process. Compilation happens in the warm-up and is not timed.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.table import Table

from fastadaad import Distiller, InnerConfig, load_model, methods

from .reference import reference_step
from .tables import print_table
from .timing import RESULTS, Timing, alternate, hardware, write_rows

PAIRS = {
    # student, teacher, channels, image size, batch size
    "small": ("cnn-16", "cnn-48", 1, 28, 128),
    "cifar": ("resnet18", "wrn-16-4", 3, 32, 32),
    "paper": ("resnet18", "wrn-34-20", 3, 32, 128),
}
REFERENCE = "reference"


def variants(pair: str, modes: list[str], inner: InnerConfig, device: torch.device) -> dict[str, Callable[[], object]]:
    """The reference and a Distiller per mode, each as a function that does one iteration on one batch."""
    student_name, teacher_name, channels, size, batch_size = PAIRS[pair]
    torch.manual_seed(0)
    student = load_model(student_name, in_channels=channels).to(device)
    teacher = load_model(teacher_name, in_channels=channels).to(device).eval()
    x_natural = torch.rand(batch_size, channels, size, size, device=device)

    def optimized_copy() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        network = copy.deepcopy(student)
        return network, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    network, optimizer = optimized_copy()
    runs: dict[str, Callable[[], object]] = {
        REFERENCE: partial(
            reference_step,
            network,
            copy.deepcopy(teacher),
            optimizer,
            x_natural,
            step_size=inner.step_size,
            num_steps=inner.num_steps,
            epsilon=inner.threat_model.epsilon,
        )
    }
    for mode in modes:
        network, optimizer = optimized_copy()
        method = methods.get("adaad", kl_reduction="mean")
        distiller = Distiller(
            network, copy.deepcopy(teacher), method=method, inner=inner, optimizer=optimizer, mode=mode
        )
        runs[f"distiller-{mode}"] = partial(distiller.step, x_natural)
    return runs


def row(pair: str, name: str, timing: Timing, reference: Timing, inner: InnerConfig) -> dict[str, object]:
    student, teacher, channels, size, batch_size = PAIRS[pair]
    return {
        "pair": pair,
        "student": student,
        "teacher": teacher,
        "batch_shape": f"{batch_size}x{channels}x{size}x{size}",
        "num_steps": inner.num_steps,
        "variant": name,
        "images_per_s": round(1e3 * batch_size / timing.median_ms, 2),
        "speedup": round(reference.median_ms / timing.median_ms, 3),
        **timing.columns(),
    }


def print_rows(rows: list[dict[str, object]], device: torch.device) -> None:
    columns = ("pair", "batch_shape", "variant", "images_per_s", "speedup", "median_ms", "p20_ms", "p80_ms")
    table = Table(*columns, title=f"one training iteration on {hardware(device)}")
    for row in rows:
        table.add_row(*[str(row[column]) for column in columns])
    print_table(table)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append", help="networks; default: small and cifar")
    parser.add_argument("--modes", default="eager,compiled", help="modes of Distiller; default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="measurements per variant; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "step.csv", help="CSV file that the rows are added to")
    arguments = parser.parse_args(argv)
    device, inner = torch.device(arguments.device), InnerConfig(num_steps=arguments.num_steps)
    rows = []
    for pair in arguments.pair or ("small", "cifar"):
        timings = alternate(
            variants(pair, arguments.modes.split(","), inner, device), device, rounds=arguments.rounds, warmup=1
        )
        rows += [row(pair, name, timing, timings[REFERENCE], inner) for name, timing in timings.items()]
    print_rows(rows, device)
    write_rows(arguments.output, rows, device)
