"""A small search of each method's settings on the validation split: `python -m bench tune`.

Every method has as many candidates, the first of which are the settings of the recipe, and one training for each. Test
images take no part.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fastadaad.config_io import override
from fastadaad.recipes import RECIPES

from .pages import Row
from .rows import RESULTS, replace_rows
from .study import LARGER_RADIUS, Cell, finished, student_config, validation_rows
from .tables import print_rows

ELEMENT_MEAN = ("method_options.kl_reduction=mean",)  # as the programs of ard, rslad and, on CIFAR-10, adaad
RECIPE = ()

# Changes of the recipe, by method.
CANDIDATES: dict[str, tuple[tuple[str, ...], ...]] = {
    "pgd-at": (RECIPE, LARGER_RADIUS, ("optim.weight_decay=2e-3",)),
    "trades": (RECIPE, LARGER_RADIUS, ("method_options.robustness_weight=3",)),
    "ard": (RECIPE, ELEMENT_MEAN, ("method_options.temperature=5",)),
    "iad": (RECIPE, LARGER_RADIUS, ("method_options.temperature=5",)),
    "rslad": (RECIPE, LARGER_RADIUS, ELEMENT_MEAN),
    "akd": (RECIPE, LARGER_RADIUS, ("method_options.teacher_weight=0.9",)),
    "adaad": (RECIPE, LARGER_RADIUS, ELEMENT_MEAN),
    "adaiad": (RECIPE, LARGER_RADIUS, ("method_options.temperature=1",)),
    "saad": (RECIPE, LARGER_RADIUS, ("method_options.igdm_weight=0",)),
    "adaad+igdm": (RECIPE, LARGER_RADIUS, ("method_options.igdm_weight=0.2",)),
}
SHOWN = ("method", "settings", "best_epoch", "natural_best", "robust_best", "chosen")


def cells_of(recipe: str, methods: Sequence[str], overrides: Sequence[str] = ()) -> Iterator[Cell]:
    """Yields a student per candidate; `overrides` change all of them and come first."""
    for method in methods:
        base = student_config(recipe, method, overrides)
        # Its result takes no part, but a configuration has one attack at least.
        base = replace(base, evaluation=replace(base.evaluation, attacks=("natural",)))
        for candidate in CANDIDATES[method]:
            yield Cell(columns={"settings": " ".join(candidate)}, config=override(base, [*candidate]))


def chosen(rows: Sequence[Row | dict[str, object]]) -> list[dict[str, object]]:
    """Returns the rows with a column that marks each method's best: by robustness, which chooses the best epoch too."""
    best: dict[object, float] = {}
    for row in rows:
        best[row["method"]] = max(best.get(row["method"], 0.0), float(row["robust_best"]))
    return [dict(row, chosen="yes" if float(row["robust_best"]) == best[row["method"]] else "") for row in rows]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench tune", description=__doc__)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes of all students")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*CANDIDATES], help="default: all")
    parser.add_argument("--folder", type=Path, default=Path("runs/tune"), help="default: %(default)s")
    parser.add_argument("--work", action="store_true", help="share the work of another process; write no rows")
    parser.add_argument("--output", type=Path, help="CSV file; default: bench/results/RECIPE-tune.csv")
    options = parser.parse_args(argv)
    cells = cells_of(options.recipe, options.methods, options.overrides)
    rows = chosen([*validation_rows(finished(cells, options.folder))])
    if options.work:
        return
    output = options.output or RESULTS / f"{options.recipe}-tune.csv"
    replace_rows(output, rows, ("method", "settings"))
    print_rows(rows, SHOWN, "accuracy on the validation split")
