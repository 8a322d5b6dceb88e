"""Evaluate the network of a run or of a weights file."""

import argparse
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides, commas

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastadaad.evaluation import AttackResult
    from fastadaad.run_config import RunConfig
    from fastadaad.runtime.distributed import ProcessGroup
    from fastadaad.training.data import TrainingData

EXAMPLE = "fastadaad evaluate runs/my-run --attacks pgd20,autoattack -n 1000"
# Options that are short forms of a setting.
SETTINGS = {
    "attacks": "evaluation.attacks",
    "num_images": "evaluation.num_images",
    "norm": "evaluation.threat_model.norm",
    "epsilon": "evaluation.threat_model.epsilon",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastadaad evaluate`."""
    # The list of all options would take the help beyond 24 lines.
    parser.usage = "fastadaad evaluate RUN_OR_WEIGHTS [OPTIONS] [section.field=value ...]"
    parser.add_argument("run_or_weights", metavar="RUN_OR_WEIGHTS", help="a run folder or a weights file")
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--attacks", metavar="LIST", help="natural, fgsm, pgdN, cw, cw-l2, cw-linf, autoattack...")
    parser.add_argument("-n", "--num-images", metavar="N", help="only the first N test images")
    parser.add_argument("--norm", help="linf or l2")
    parser.add_argument("--epsilon", help="radius in pixel units, such as 8/255")
    parser.add_argument("--corruptions", metavar="FOLDER", help="accuracy on CIFAR-10-C or CIFAR-100-C, no attacks")
    parser.add_argument("--examples-of", metavar="RUN", help="attack by images made for this run or file")
    parser.add_argument("--recipe", help="data set and network of a weights file")
    parser.add_argument("--csv", metavar="FILE", help="write the results to a CSV file")
    parser.add_argument("--json", metavar="FILE", help="write the results to a JSON file")
    parser.add_argument("--state", metavar="FOLDER", help="save and resume the progress of cw and autoattack")
    parser.add_argument("--shard", type=_shard, metavar="I/N", help="every N-th image from I; all/N: all in turn")


def _shard(text: str) -> tuple[list[int], int]:
    """Returns the numbers of the shards to evaluate and the number of shards in total."""
    match = re.fullmatch(r"([0-9]{1,4}|all)/([1-9][0-9]{0,3})", text)
    if match is None or (match[1] != "all" and int(match[1]) >= int(match[2])):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard: write 0/2 and 1/2, or all/2")
    count = int(match[2])
    return (list(range(count)) if match[1] == "all" else [int(match[1])]), count


def _config_and_weights(arguments: argparse.Namespace) -> "tuple[RunConfig, Path]":
    from fastadaad import recipes
    from fastadaad.cli.run_folder import read_run
    from fastadaad.config_io import override

    target = Path(arguments.run_or_weights)
    if target.is_dir():
        config, weights = read_run(target), target / "best.safetensors"
    elif arguments.recipe is not None:
        config, weights = recipes.get(arguments.recipe), target
    else:
        if not target.exists():
            raise ValueError(f"{target} does not exist: give a run folder or a weights file")
        raise ValueError(f"{target} is not a run folder: for a weights file, --recipe tells its data set and network")
    overrides = list(arguments.overrides)
    for option, setting in SETTINGS.items():
        value = getattr(arguments, option)
        if value is not None:
            overrides.append(f"{setting}={json.dumps(commas(value)) if option == 'attacks' else value}")
    return override(config, overrides), weights


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Evaluates the network, prints the results and writes them to the requested files."""
    from fastadaad.evaluation.report import write_json, write_results
    from fastadaad.runtime.distributed import joined_process_group
    from fastadaad.runtime.files import check_output

    config, weights = _config_and_weights(arguments)
    for output in filter(None, (arguments.csv, arguments.json)):
        check_output(Path(output))
    state = None if arguments.state is None else Path(arguments.state)
    if state is not None and state.exists() and not state.is_dir():
        raise ValueError(f"{state} is not a folder: give a folder, new or of the evaluation to resume")
    _check_corruptions(arguments)
    with joined_process_group(config.device, config.rank_timeout_s) as process_group:
        if not process_group.is_first:
            console = Console(quiet=True)
        if arguments.shard and process_group.size > 1:
            raise ValueError("--shard is for separate commands: leave it out under torchrun")
        results = _results(arguments, config, weights, state, console, process_group)
        name = Path(arguments.run_or_weights).name
        if arguments.csv and process_group.is_first:
            write_results(Path(arguments.csv), [(name, results)])
        if arguments.json and process_group.is_first:
            write_json(Path(arguments.json), name, results)


def _check_corruptions(arguments: argparse.Namespace) -> None:
    """Raises ValueError for an option that has no effect beside --corruptions."""
    given = [
        name for name in ("attacks", "norm", "epsilon", "state", "examples_of") if getattr(arguments, name) is not None
    ]
    if arguments.corruptions is not None and given:
        raise ValueError(
            f"--corruptions measures accuracy without an attack: leave out --{', --'.join(given).replace('_', '-')}"
        )


def _surrogate(target: Path, data: "TrainingData", device: "torch.device") -> "nn.Module":
    """Builds the network of a run, or of a weights file by the names and shapes of its tensors."""
    from fastadaad.cli.run_folder import read_run
    from fastadaad.models.recognition import recognize
    from fastadaad.models.weights_reading import read_state_dict
    from fastadaad.run_config import ModelConfig
    from fastadaad.training.build import build_model

    if target.is_dir():
        name, weights = read_run(target).student.name, target / "best.safetensors"
    else:
        networks, weights = recognize(read_state_dict(target)), target
        if not networks:
            raise ValueError(f"{target} holds no network that fastadaad builds: give the folder of its run")
        name = networks[0].name
    return build_model(ModelConfig(name=name, checkpoint=str(weights)), data, device).eval()


def _results(
    arguments: argparse.Namespace,
    config: "RunConfig",
    weights: Path,
    state: Path | None,
    console: Console,
    process_group: "ProcessGroup",
) -> "list[AttackResult]":
    """Evaluates the requested shards, merges their results and prints them."""
    from fastadaad.data.corruptions import read_corruptions
    from fastadaad.evaluation import merge
    from fastadaad.evaluation.report import print_attacks, print_corruptions
    from fastadaad.run_config import ModelConfig
    from fastadaad.training.build import build_model, resolve_device
    from fastadaad.training.data import training_data
    from fastadaad.training.evaluation import evaluate_on_corruptions, evaluate_on_test_set

    device = resolve_device(config.device)
    data = training_data(config, device, process_group)
    # A run's own weights file holds one network, whatever file its student began with.
    prefix = None if Path(arguments.run_or_weights).is_dir() else config.student.prefix
    network = ModelConfig(name=config.student.name, checkpoint=str(weights), prefix=prefix)
    model = build_model(network, data, device)
    numbers, count = arguments.shard or ([0], 1)
    shards_of_data = [replace(data, test=data.test.shard(number, count)) for number in numbers]
    name = Path(arguments.run_or_weights).name
    if arguments.corruptions is None:
        surrogate = None if arguments.examples_of is None else _surrogate(Path(arguments.examples_of), data, device)
        measure = partial(evaluate_on_test_set, state=state, surrogate=surrogate)
        show = print_attacks
    else:
        corruptions = read_corruptions(Path(arguments.corruptions), data.dataset)
        measure = partial(evaluate_on_corruptions, corruptions=corruptions)
        show = partial(print_corruptions, averaged=corruptions.averaged, missing=corruptions.missing)
    with data.fitting_threads(device):
        measured = [
            measure(model, config, shard, console=console, title=name, process_group=process_group)
            for shard in shards_of_data
        ]
    results = [merge(of_attack) for of_attack in zip(*measured, strict=True)]
    show(console, results)
    return results
