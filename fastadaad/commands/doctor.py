"""Show what is installed, in use and missing, and what the self-check found."""

import argparse

from rich.console import Console

EXAMPLE = "fastadaad doctor --verify"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verify", action="store_true", help="run the whole self-check again, compiling included")


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad import doctor

    result = doctor.verify(console) if arguments.verify else None
    doctor.print_report(console)
    if result is not None and result.failures:
        raise ValueError(result.summary)
