"""Evaluate a run folder, or a file of weights, on its test set."""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fastadaad.commands.arguments import add_overrides, commas

EXAMPLE = "fastadaad evaluate runs/my-run --attacks natural,fgsm,pgd20"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_or_weights", metavar="RUN_OR_WEIGHTS", help="a run folder or a weights file")
    add_overrides(parser)
    parser.add_argument("--attacks", metavar="LIST", help="natural, fgsm, pgdN, with commas; default: the recipe's")
    parser.add_argument("--recipe", help="of a weights file: its data set and network")
    parser.add_argument("--csv", metavar="FILE", help="write the results there too")


def run(arguments: argparse.Namespace, console: Console) -> None:
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
    attacks = tuple(commas(arguments.attacks)) if arguments.attacks else config.evaluation.attacks
    config = replace(config, evaluation=replace(config.evaluation, attacks=attacks))
    device = resolve_device(config.device)
    data = training_data(config, device)
    model = build_model(ModelConfig(name=config.student.name, checkpoint=str(weights)), data, device)
    rows = [(target.name, evaluate_on_test_set(model, config, data, console, target.name))]
    print_accuracies(console, rows)
    if arguments.csv:
        write_results(Path(arguments.csv), rows)
