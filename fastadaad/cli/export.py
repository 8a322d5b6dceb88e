"""Export a student for other programs.

The file is safetensors, or a state dict that RobustBench's classes load.
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastadaad.cli.arguments import add_prefix
from fastadaad.runtime.text import print_line

EXAMPLE = "fastadaad export runs/my-run student.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastadaad export`."""
    parser.add_argument("run_or_weights", metavar="RUN_OR_WEIGHTS", help="a run folder or a weights file")
    parser.add_argument("out", metavar="OUT", help=".safetensors, or .pt for RobustBench's form")
    add_prefix(parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Exports the network and prints the file and how to load it."""
    from fastadaad.models.export import export

    for line in export(Path(arguments.run_or_weights), Path(arguments.out), prefix=arguments.prefix):
        print_line(console, line)
