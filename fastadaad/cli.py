"""The command line: fastadaad train | evaluate | compare | recipes | doctor."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of the whole usage; exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _run_folder(given: str | None, *words: object) -> Path:
    """The folder of a new run: as given, or runs/<date>_<words>; never one that holds something already."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(given) if given else Path("runs", "_".join([stamp, *map(str, words)]))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already: give another --run-folder, or move it away")
    return folder


def _commas(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of seeds: write them as 0,1")
    return [int(seed) for seed in text.split(",")]


def train(arguments: argparse.Namespace, console: Console) -> None:
    """Train one student and evaluate its best epoch on the test set."""
    from fastadaad import recipes
    from fastadaad.compare import train_and_evaluate
    from fastadaad.config_io import override
    from fastadaad.evaluation.report import print_accuracies, write_results

    method = {} if arguments.method is None else {"method": arguments.method}
    config = override(recipes.get(arguments.recipe, **method), arguments.overrides)
    if arguments.print_config:
        console.print_json(json.dumps(asdict(config)))
        return
    folder = _run_folder(arguments.run_folder, config.recipe, config.method, f"seed{config.seed}")
    _print_ops(console)
    rows = [(config.method, train_and_evaluate(config, folder, console, config.method))]
    write_results(folder / "results.csv", rows)
    print_accuracies(console, rows)
    console.print(f"run folder: {folder}")


def evaluate(arguments: argparse.Namespace, console: Console) -> None:
    """Evaluate a run folder, or a file of weights, on its test set."""
    from fastadaad import recipes
    from fastadaad.config import ModelConfig
    from fastadaad.config_io import override, read_config
    from fastadaad.evaluation.report import print_accuracies, write_results
    from fastadaad.trainer import build_model, evaluate_on_test_set, resolve_device
    from fastadaad.training_data import training_data

    target = Path(arguments.run_or_weights)
    if target.is_dir():
        config, weights = read_config(target / "config.json"), target / "best.safetensors"
    elif arguments.recipe is not None:
        config, weights = recipes.get(arguments.recipe), arguments.run_or_weights
    else:
        if not target.exists():
            raise ValueError(f"{target} does not exist: give a run folder or a weights file")
        raise ValueError(f"{target} is not a run folder: for a weights file, --recipe tells its data set and network")
    config = override(config, arguments.overrides)
    attacks = tuple(_commas(arguments.attacks)) if arguments.attacks else config.evaluation.attacks
    config = replace(config, evaluation=replace(config.evaluation, attacks=attacks))
    device = resolve_device(config.device)
    data = training_data(config, device)
    model = build_model(ModelConfig(name=config.student.name, checkpoint=str(weights)), data, device)
    rows = [(target.name, evaluate_on_test_set(model, config, data, console, target.name))]
    print_accuracies(console, rows)
    if arguments.csv:
        write_results(Path(arguments.csv), rows)


def compare(arguments: argparse.Namespace, console: Console) -> None:
    """Train and evaluate several methods beside the recipe's teacher."""
    from fastadaad.compare import compare as run_comparison

    folder = _run_folder(arguments.run_folder, arguments.recipe, "compare")
    _print_ops(console)
    run_comparison(
        arguments.recipe,
        arguments.overrides,
        folder=folder,
        method_names=_commas(arguments.methods),
        seeds=arguments.seeds,
        from_scratch=arguments.from_scratch,
        console=console,
    )
    console.print(f"curves: {folder / 'curves.png'}\nrun folder: {folder}")


def list_recipes(arguments: argparse.Namespace, console: Console) -> None:
    """Show the recipes."""
    from fastadaad.recipes import RECIPES

    table = Table(title="fastadaad train RECIPE")
    for column in ("recipe", "what it trains", "epochs"):
        table.add_column(column)
    for name, recipe in RECIPES.items():
        table.add_row(name, recipe.__doc__, str(recipe().optim.epochs))
    console.print(table)


def doctor(arguments: argparse.Namespace, console: Console) -> None:
    """Show versions, devices, the backend of each operation, and what is missing."""
    from fastadaad.doctor import print_report

    print_report(console)


def _print_ops(console: Console) -> None:
    from fastadaad.doctor import summarize_ops

    console.print(summarize_ops())


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastadaad",
        description="Robust students from robust teachers, fast.",
        epilog="example: fastadaad train demo",
    )
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable, example: str) -> argparse.ArgumentParser:
        description = (run.__doc__ or "").strip()
        command = commands.add_parser(name, help=description, description=description, epilog=f"example: {example}")
        command.set_defaults(run=run)
        return command

    def add_overrides(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "overrides",
            nargs="*",
            metavar="section.field=value",
            help="change settings; train --print-config shows all",
        )

    def add_run_folder(command: argparse.ArgumentParser) -> None:
        command.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: a new folder in runs/")

    command = add("train", train, "fastadaad train fashion-mnist optim.epochs=12 inner.threat_model.epsilon=8/255")
    command.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(command)
    command.add_argument("--method", help="adaad or pgd-at; default: the recipe's")
    command.add_argument("--print-config", action="store_true", help="print the settings and stop")
    add_run_folder(command)

    command = add("evaluate", evaluate, "fastadaad evaluate runs/my-run --attacks natural,fgsm,pgd20")
    command.add_argument("run_or_weights", metavar="RUN_OR_WEIGHTS", help="a run folder or a weights file")
    add_overrides(command)
    command.add_argument("--attacks", metavar="LIST", help="natural, fgsm, pgdN, with commas; default: the recipe's")
    command.add_argument("--recipe", help="of a weights file: its data set and network")
    command.add_argument("--csv", metavar="FILE", help="write the results there too")

    command = add("compare", compare, "fastadaad compare fashion-mnist --seeds 0,1")
    command.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(command)
    command.add_argument("--methods", default="pgd-at,adaad", metavar="LIST", help="default: %(default)s")
    command.add_argument("--seeds", type=_seeds, default="0", metavar="LIST", help="default: %(default)s")
    command.add_argument("--from-scratch", action="store_true", help="train the teacher first")
    add_run_folder(command)

    add("recipes", list_recipes, "fastadaad recipes")
    add("doctor", doctor, "fastadaad doctor")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with overrides anywhere on the line."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # argparse gives `overrides` only those that directly follow the recipe; the ones after an option are left over.
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in arguments):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a user's mistake, 130 when interrupted."""
    arguments = _parse(argv)
    try:
        arguments.run(arguments, Console())
    except (ValueError, OSError) as error:
        if arguments.traceback:
            raise
        print(f"fastadaad: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastadaad: interrupted; what was saved so far is complete", file=sys.stderr)
        return 130
    return 0
