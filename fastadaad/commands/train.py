"""Train one student and evaluate its best epoch.

The test set is used once, at the end.
"""

import argparse
import json
from dataclasses import asdict

from rich.console import Console

from fastadaad.commands.arguments import add_download, add_overrides, add_run_folder, new_run_folder

EXAMPLE = "fastadaad train fashion-mnist optim.epochs=12 teacher.policy=linearized"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--method", help="see fastadaad methods; default: the recipe's")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    add_run_folder(parser)


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad import recipes
    from fastadaad.compare import train_and_evaluate
    from fastadaad.config_io import override
    from fastadaad.doctor import summarize_ops
    from fastadaad.evaluation.report import print_accuracies, write_results

    method = {} if arguments.method is None else {"method": arguments.method}
    config = override(recipes.get(arguments.recipe, **method), arguments.overrides)
    if arguments.print_config:
        console.print_json(json.dumps(asdict(config)))
        return
    folder = new_run_folder(arguments.run_folder, config.recipe, config.method, f"seed{config.seed}")
    console.print(summarize_ops())
    rows = [(config.method, train_and_evaluate(config, folder, console, config.method))]
    write_results(folder / "results.csv", rows)
    print_accuracies(console, rows)
    console.print(f"run folder: {folder}")
