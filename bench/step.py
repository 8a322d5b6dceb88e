"""`python -m bench step`: one training iteration of each method, `Distiller` against the plain program of reference.py.

Each variant trains networks of its own, from the same weights on the same images; the variants of a method alternate
in one process. Compilation happens in the warm-up and is not timed.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import torch
from rich.table import Table

from fastadaad import Distiller, InnerConfig, load_model, methods

from .reference import LEANER, REFERENCES, Reference, reference_step
from .tables import print_table
from .timing import RESULTS, Timing, alternate, hardware, write_rows

PAIRS = {
    # student, teacher, channels, image size, batch size
    "small": ("cnn-16", "cnn-48", 1, 28, 128),
    "cifar": ("resnet18", "wrn-16-4", 3, 32, 32),
    "paper": ("resnet18", "wrn-34-20", 3, 32, 128),
}
REFERENCE = "reference"


def variants(
    pair: str, method: str, modes: list[str], inner: InnerConfig, device: torch.device
) -> dict[str, Callable[[], object]]:
    """The references and a Distiller per mode, each as a function that does one iteration on one batch."""
    student_name, teacher_name, channels, size, batch_size = PAIRS[pair]
    torch.manual_seed(0)
    student = load_model(student_name, in_channels=channels).to(device)
    teacher = load_model(teacher_name, in_channels=channels).to(device).eval()
    x_natural = torch.rand(batch_size, channels, size, size, device=device)
    labels = torch.randint(10, (batch_size,), device=device)

    def own_networks() -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
        network = copy.deepcopy(student)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        return network, copy.deepcopy(teacher), optimizer

    def reference_run(reference: Reference) -> Callable[[], object]:
        return partial(reference_step, reference, *own_networks(), x_natural, labels, inner=inner)

    def distiller_run(mode: str) -> Callable[[], object]:
        network, own_teacher, optimizer = own_networks()
        same_method = methods.get(method, **REFERENCES[method].options)
        distiller = Distiller(network, own_teacher, method=same_method, inner=inner, optimizer=optimizer, mode=mode)
        return partial(distiller.step, x_natural, labels)

    references = {REFERENCE: REFERENCES[method], **LEANER.get(method, {})}
    runs = {name: reference_run(reference) for name, reference in references.items()}
    return runs | {f"distiller-{mode}": distiller_run(mode) for mode in modes}


def row(pair: str, method: str, name: str, timing: Timing, reference: Timing, inner: InnerConfig) -> dict[str, object]:
    student, teacher, channels, size, batch_size = PAIRS[pair]
    return {
        "pair": pair,
        "student": student,
        "teacher": teacher,
        "method": method,
        "batch_shape": f"{batch_size}x{channels}x{size}x{size}",
        "num_steps": inner.num_steps,
        "variant": name,
        "images_per_s": round(1e3 * batch_size / timing.median_ms, 2),
        "speedup": round(reference.median_ms / timing.median_ms, 3),
        **timing.columns(),
    }


def print_rows(rows: list[dict[str, object]], device: torch.device) -> None:
    columns = ("pair", "method", "batch_shape", "variant", "images_per_s", "speedup", "median_ms", "p20_ms", "p80_ms")
    table = Table(*columns, title=f"one training iteration on {hardware(device)}")
    for row in rows:
        table.add_row(*[str(row[column]) for column in columns])
    print_table(table)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench step", description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=PAIRS, action="append", help="networks; default: small and cifar")
    parser.add_argument("--method", choices=(*REFERENCES, "all"), action="append", help="default: adaad")
    parser.add_argument("--modes", default="eager,compiled", help="modes of Distiller; default: %(default)s")
    parser.add_argument("--num-steps", type=int, default=10, help="inner steps; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="measurements per variant; default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "step.csv", help="CSV file that the rows are added to")
    arguments = parser.parse_args(argv)
    device, inner = torch.device(arguments.device), InnerConfig(num_steps=arguments.num_steps)
    names = arguments.method or ["adaad"]
    rows = []
    for pair, method in product(arguments.pair or ("small", "cifar"), REFERENCES if "all" in names else names):
        runs = variants(pair, method, arguments.modes.split(","), inner, device)
        torch.compiler.reset()  # the graphs of the methods before: torch.compile keeps only a few per function
        timings = alternate(runs, device, rounds=arguments.rounds, warmup=1)
        measured = [row(pair, method, name, timing, timings[REFERENCE], inner) for name, timing in timings.items()]
        write_rows(arguments.output, measured, device)  # at once: a long measurement that stops keeps what it has
        rows += measured
    print_rows(rows, device)
