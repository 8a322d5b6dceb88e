"""Identify the network of a weights file.

Parameter names and shapes determine the network; its normalisation is printed too.
A file of several networks, such as a Lightning checkpoint, needs --prefix.
"""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastadaad.cli.arguments import add_prefix
from fastadaad.runtime.text import print_line, printable

EXAMPLE = "fastadaad inspect Chen2021LTD_WRN34_20.pt"
MAX_BESIDE = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastadaad inspect`."""
    parser.add_argument("file", metavar="FILE", help=".safetensors, .pt, .pth, .ckpt")
    add_prefix(parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Prints a table about the file, and the line that uses it as a teacher."""
    from fastadaad.models.recognition import recognize
    from fastadaad.models.robust_teachers import ROBUST_TEACHERS
    from fastadaad.models.weights_reading import first_of, read_checkpoint

    path = Path(arguments.file)
    checkpoint = read_checkpoint(path, arguments.prefix)
    recognized = recognize(checkpoint.weights)
    rows = [
        ("nested under", " / ".join(checkpoint.entry) or "nothing"),
        ("tensors", f"{len(checkpoint.weights)}, {sum(t.numel() for t in checkpoint.weights.values()):,} numbers"),
        ("left out", f"{len(checkpoint.unused)} unused" if checkpoint.unused else "nothing"),
        ("beside the weights", first_of(checkpoint.beside, MAX_BESIDE) or "nothing"),
        ("normalisation", _normalization(checkpoint.weights)),
        ("network", " or ".join(network.name for network in recognized) or "unknown to fastadaad"),
    ]
    if recognized:
        rows += [("classes", str(recognized[0].num_classes)), ("input channels", str(recognized[0].in_channels))]
    rows += [
        (
            f"{teacher.data} teacher",
            f"{teacher.natural:.2f} % natural, {teacher.autoattack:.2f} % AutoAttack reported",
        )
        for teacher in ROBUST_TEACHERS
        if teacher.name == path.stem and teacher.network in [network.name for network in recognized]
    ]
    table = Table(title=Text(printable(path.name)), show_header=False)
    for row in rows:
        table.add_row(row[0], Text(printable(row[1])))
    console.print(table)
    if recognized:
        words = f"teacher.name={recognized[0].name} teacher.checkpoint={path}"
        words += "" if arguments.prefix is None else f" teacher.prefix={arguments.prefix}"
        print_line(console, f"as a teacher: fastadaad train RECIPE {words}")
    else:
        print_line(console, f"first tensors: {', '.join(list(checkpoint.weights)[:4])}")


def _normalization(weights: dict[str, Any]) -> str:
    """Returns mean and std per channel in words."""
    if "normalize.mean" not in weights or "normalize.std" not in weights:
        return "none in the file"
    mean, std = (weights[f"normalize.{name}"].flatten().tolist() for name in ("mean", "std"))
    if set(mean) == {0.0} and set(std) == {1.0}:
        return "none: mean 0, std 1"
    return " ".join(
        f"{name} {[round(value, 4) for value in values]}" for name, values in (("mean", mean), ("std", std))
    )
