"""Tell which network a file of weights holds.

Its names and shapes alone tell it, and its normalisation.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastadaad.runtime.text import printable, say

EXAMPLE = "fastadaad inspect Chen2021LTD_WRN34_20.pt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help=".safetensors, .pt or .pth")


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.models.recognition import recognize
    from fastadaad.models.robust_teachers import ROBUST_TEACHERS
    from fastadaad.models.weights_reading import read_checkpoint

    path = Path(arguments.file)
    checkpoint = read_checkpoint(path)
    recognized = recognize(checkpoint.weights)
    rows = [
        ("nested under", " / ".join(checkpoint.entry) or "nothing"),
        ("tensors", f"{len(checkpoint.weights)}, {sum(t.numel() for t in checkpoint.weights.values()):,} numbers"),
        ("left out", f"{len(checkpoint.unused)} unused" if checkpoint.unused else "nothing"),
        ("normalisation", _normalization(checkpoint.weights)),
        ("network", " or ".join(network.name for network in recognized) or "none that fastadaad builds"),
    ]
    if recognized:
        rows += [("classes", str(recognized[0].num_classes)), ("input channels", str(recognized[0].in_channels))]
    rows += [
        (
            f"named as {teacher.data}'s",
            f"{teacher.natural:.2f} % natural, {teacher.autoattack:.2f} % AutoAttack reported",
        )
        for teacher in ROBUST_TEACHERS
        if teacher.name == path.stem and teacher.network in [network.name for network in recognized]
    ]
    table = Table(title=Text(printable(path.name)), show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if recognized:
        name = recognized[0].name
        say(console, f"as a teacher: fastadaad train RECIPE teacher.name={name} teacher.checkpoint={path}")
    else:
        say(console, f"its names begin with {', '.join(list(checkpoint.weights)[:4])}")


def _normalization(weights: dict) -> str:
    """mean and std per channel, or that there is none."""
    if "normalize.mean" not in weights or "normalize.std" not in weights:
        return "none in the file"
    mean, std = (weights[f"normalize.{name}"].flatten().tolist() for name in ("mean", "std"))
    if set(mean) == {0.0} and set(std) == {1.0}:
        return "none: mean 0, std 1"
    return " ".join(
        f"{name} {[round(value, 4) for value in values]}" for name, values in (("mean", mean), ("std", std))
    )
