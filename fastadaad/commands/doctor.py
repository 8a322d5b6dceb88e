"""Show what is installed, in use and missing."""

import argparse

from rich.console import Console

EXAMPLE = "fastadaad doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.doctor import print_report

    print_report(console)
