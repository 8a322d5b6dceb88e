"""Train one student and evaluate its best epoch.

The test set is used once, at the end.
"""

import argparse
import json
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides
from fastadaad.runtime.text import say

EXAMPLE = "fastadaad train fashion-mnist optim.epochs=12 teacher.policy=linearized"


# Options that are short for a setting.
SETTINGS = ("teacher_check", "rank_timeout_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    add_download(parser)
    parser.add_argument("--method", help="see fastadaad methods; default: the recipe's")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: a new folder in runs/")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped, if there is one")
    parser.add_argument("--teacher-check", metavar="N", help="measure the teacher on N images first; default: 256")
    parser.add_argument(
        "--rank-timeout", dest="rank_timeout_s", metavar="S", help="end a process that hangs for S seconds"
    )


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad.runtime.distributed import started_by_torchrun
    from fastadaad.runtime.signals import stopped_by_signals

    # torchrun sends signals itself, also to processes that wait for each other, where none would be heard.
    with nullcontext() if started_by_torchrun() else stopped_by_signals():
        _train(arguments, console)


def _train(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad import recipes
    from fastadaad.cli.comparison.compare import train_and_evaluate
    from fastadaad.cli.machine_report import summarize_ops
    from fastadaad.config_io import override
    from fastadaad.evaluation.report import print_accuracies, write_results
    from fastadaad.runtime.distributed import joined_processes, restarted_by_torchrun
    from fastadaad.training.folders import RESULTS, choose_run_folder

    method = {} if arguments.method is None else {"method": arguments.method}
    short = [f"{name}={value}" for name in SETTINGS if (value := getattr(arguments, name)) is not None]
    config = override(recipes.get(arguments.recipe, **method), [*arguments.overrides, *short])
    if arguments.print_config:
        console.print_json(json.dumps(asdict(config)))
        return
    with joined_processes(config.device, config.rank_timeout_s) as processes:
        if not processes.is_first:
            console = Console(quiet=True)
        resume = arguments.resume or any(processes.gathered(restarted_by_torchrun()))
        folder = None
        if processes.is_first:
            folder = choose_run_folder(arguments.run_folder, config, resume=resume, say=partial(say, console))
        folder = processes.from_first(folder)
        assert folder is not None
        console.print(summarize_ops())
        rows = [(config.method, train_and_evaluate(config, folder, console, config.method, resume=resume))]
        if processes.is_first:
            write_results(folder / RESULTS, rows)
        print_accuracies(console, rows)
        say(console, f"run folder: {folder}")
