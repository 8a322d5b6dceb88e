"""`python -m bench run RECIPE`: train and evaluate as `fastadaad compare` does, and keep the accuracies as rows."""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.compare import compare
from fastadaad.config_io import override
from fastadaad.trainer import resolve_device

from .timing import RESULTS, write_rows


def main(argv: list[str]) -> None:
    """Parse the options, compare, append the rows."""
    parser = argparse.ArgumentParser(prog="python -m bench run", description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value")
    parser.add_argument("--methods", default="pgd-at,adaad", help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the runs go; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="CSV file for the rows; default: bench/results/RECIPE.csv")
    options = parser.parse_args(argv)
    rows = compare(
        options.recipe,
        options.overrides,
        folder=options.folder or Path(tempfile.mkdtemp(prefix="fastadaad-")),
        method_names=options.methods.split(","),
        seeds=[int(seed) for seed in options.seeds.split(",")],
        from_scratch=False,
        console=Console(),
    )
    device = resolve_device(override(recipes.get(options.recipe), options.overrides).device)
    write_rows(
        options.output or RESULTS / f"{options.recipe}.csv",
        [{"recipe": options.recipe, "model": name} | result.row() for name, results in rows for result in results],
        device,
    )
