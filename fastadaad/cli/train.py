"""Train one student and evaluate its best epoch.

The test set is used once.
"""

import argparse
import json
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fastadaad.cli.arguments import add_config, add_download, add_overrides
from fastadaad.runtime.messages import messages_on
from fastadaad.runtime.text import print_line

if TYPE_CHECKING:
    from fastadaad.run_config import RunConfig

EXAMPLE = "fastadaad train fashion-mnist optim.epochs=12 teacher.policy=refreshed"


# Options that are short for a setting.
SETTINGS = ("teacher_check", "rank_timeout_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastadaad train`."""
    # The list of all options would take the help beyond 24 lines.
    parser.usage = "fastadaad train RECIPE [OPTIONS] [section.field=value ...]"
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="see fastadaad recipes")
    add_overrides(parser)
    add_config(parser)
    add_download(parser)
    parser.add_argument("--method", help="see fastadaad methods; default: the recipe's")
    parser.add_argument("--teacher", metavar="NAME", help="RobustBench's name, see fastadaad teachers")
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: a new folder in runs/")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped, if there is one")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="CHANGE", help="with --resume: such as optim.epochs=60"
    )
    parser.add_argument("--teacher-check", metavar="N", help="measure the teacher on N images first; default: 256")
    parser.add_argument("--profile", metavar="STEPS", type=int, default=0, help="trace some steps, such as --profile 5")
    parser.add_argument(
        "--rank-timeout", dest="rank_timeout_s", metavar="S", help="end a process that hangs for S seconds"
    )


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Trains one student in a new folder, or resumes a run, and evaluates it on the test set."""
    from fastadaad.cli.machine_report import summarize_ops
    from fastadaad.evaluation.report import print_accuracies, write_results
    from fastadaad.runtime.distributed import joined_process_group, restarted_by_torchrun, started_by_torchrun
    from fastadaad.runtime.signals import stopped_by_signals
    from fastadaad.training.checkpoint import checkpoint_paths
    from fastadaad.training.folders import RESULTS, choose_run_folder, remove_if_empty
    from fastadaad.training.trainer import Trainer

    if arguments.profile < 0:
        raise ValueError(f"--profile is {arguments.profile}: give a number of steps, 1 or more")
    if arguments.allow and not arguments.resume:
        raise ValueError(f"--allow {arguments.allow[0]} changes a run that is resumed: add --resume")
    config = _config(arguments)
    if arguments.print_config:
        console.print_json(json.dumps(asdict(config)))
        return
    folders: list[Path] = []
    with (
        # torchrun sends signals itself, also to ranks that wait for each other and could not handle one.
        nullcontext() if started_by_torchrun() else stopped_by_signals(lambda: any(map(checkpoint_paths, folders))),
        joined_process_group(config.device, config.rank_timeout_s) as group,
        messages_on(console if group.is_first else Console(quiet=True)),
        ExitStack() as stack,
    ):
        if not group.is_first:
            console = Console(quiet=True)
        resume = arguments.resume or any(group.all_gather(restarted_by_torchrun()))
        chosen = choose_run_folder(arguments.run_folder, config, resume=resume) if group.is_first else None
        folder = group.broadcast(chosen)
        assert folder is not None
        folders.append(folder)
        if chosen is not None:
            stack.callback(remove_if_empty, folder)
        print_line(console, f"run folder: {folder}")
        console.print(summarize_ops())
        trainer = Trainer(
            config,
            folder,
            console,
            resume=resume,
            allow=arguments.allow,
            process_group=group,
            profile_steps=arguments.profile,
        )
        stack.enter_context(trainer.data.fitting_threads(trainer.device))
        result = trainer.train()
        console.print(result.line(config.method))
        rows = [(config.method, trainer.evaluate_best(config.method))]
        if group.is_first:
            write_results(folder / RESULTS, rows)
        print_accuracies(console, rows)
        print_line(console, f"run folder: {folder}")


def _config(arguments: argparse.Namespace) -> "RunConfig":
    from fastadaad import recipes
    from fastadaad.config_io import override

    if arguments.recipe is None:
        raise ValueError("no recipe is named: see fastadaad recipes")
    method = {} if arguments.method is None else {"method": arguments.method}
    config = recipes.get(arguments.recipe, **method)
    teacher = []
    if arguments.teacher is not None:
        from fastadaad.models.robust_teachers import teacher_settings

        data = next(
            (text[10:] for text in reversed(arguments.overrides) if text.startswith("data.name=")), config.data.name
        )
        teacher = teacher_settings(arguments.teacher, data)
    short = [f"{name}={value}" for name in SETTINGS if (value := getattr(arguments, name)) is not None]
    return override(config, [*teacher, *arguments.overrides, *short])
