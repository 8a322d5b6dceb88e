"""Write runs and comparisons as one HTML file.

It needs no other file and no network: settings, curves, attacks, adversarial images, errors of a teacher policy,
versions; of a comparison its table, its pictures and the curves of each run.
"""

import argparse
from pathlib import Path

from rich.console import Console

from fastadaad.runtime.text import print_line

EXAMPLE = "fastadaad report runs/my-run --output report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs or comparisons")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: report.html in the first folder")
    parser.add_argument("--no-examples", action="store_true", help="without adversarial images, which need the data")


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Writes the report. Raises ValueError for a folder that holds neither a run nor a comparison."""
    from fastadaad.cli.reports.comparison_report import comparison_report
    from fastadaad.cli.reports.page import page
    from fastadaad.cli.reports.run_facts import is_comparison
    from fastadaad.cli.reports.run_report import run_report
    from fastadaad.runtime.files import check_output, write_output
    from fastadaad.training.folders import holds_run

    for folder in arguments.runs:
        if not (folder.is_dir() and (is_comparison(folder) or holds_run(folder))):
            raise ValueError(
                f"{folder} holds neither a run nor a comparison: fastadaad runs lists the runs of a folder"
            )
    output = arguments.output or arguments.runs[0] / "report.html"
    check_output(output)
    sections = [
        comparison_report(folder)
        if is_comparison(folder)
        else run_report(folder, has_examples=not arguments.no_examples)
        for folder in arguments.runs
    ]
    write_output(output, page(f"fastadaad: {', '.join(folder.resolve().name for folder in arguments.runs)}", sections))
    print_line(console, f"report: {output}")
