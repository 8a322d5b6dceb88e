"""Train as the AdaAD authors' program does, from its flags.

--dataset --model --method --teacher_model --epsilon --num_steps --step_size
--epochs --bs --lr_max --lr_schedule --gpu_id, and --momentum --weight_decay
--seed --warmup_lr --warmup_lr_epochs --temp --AdaAD_alpha --IAD_begin
--IAD_alpha --IAD_beta, with its values and its defaults. Whole numbers of
--epsilon and --step_size are in 0..255; 8/255 and 0.031 are in [0, 1].
The command of fastadaad that does the same is printed, and run.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from fastadaad.cli.arguments import add_download, add_overrides

EXAMPLE = "fastadaad compat --method AdaAD --epsilon 8 --step_size 2"

FLAGS = (
    "dataset", "model", "method", "teacher_model", "epsilon", "num_steps", "step_size", "epochs", "bs", "lr_max",
    "lr_schedule", "gpu_id", "optim", "momentum", "weight_decay", "seed", "warmup_lr_epochs", "temp", "AdaAD_alpha",
    "IAD_begin", "IAD_alpha", "IAD_beta",
)  # fmt: skip
# Unsupported flags of the program and of similar ones, and their replacements.
REMEDIES = {
    "rand_init": "the program does not read it either; to start at the images add inner.start=natural",
    "mixture": "the program fails at it; trades weighs natural images too: --method trades",
    "root_path": "give --run-folder FOLDER",
    "is_desc": "give --run-folder FOLDER",
    "desc_str": "give --run-folder FOLDER",
    "save_dir": "give --run-folder FOLDER",
    "data_dir": "add data.root=FOLDER",
    "arch": "give --model",
    "net": "give --model",
    "teacher_path": "give --teacher_model FILE",
    "batch_size": "give --bs",
    "lr": "give --lr_max",
    "learning_rate": "give --lr_max",
    "wd": "give --weight_decay",
    "beta": "add method_options.robustness_weight=6",
    "alpha": "give --AdaAD_alpha, --IAD_alpha or --step_size",
    "no_cuda": "add device=cpu",
    "device": "give --gpu_id, or device=cpu",
    "workers": "add data.num_workers=2",
}


class _Refused(argparse.Action):
    """Exits with the remedy for an unsupported flag."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        parser.error(f"{option} is not taken: {REMEDIES[self.dest]}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "fastadaad compat [FLAG VALUE ...] [section.field=value ...]"
    add_overrides(parser)
    add_download(parser)
    hidden = argparse.SUPPRESS  # the module's docstring lists them in the help
    for flag in FLAGS:
        parser.add_argument(*_spellings(flag), dest=flag, help=hidden)
    parser.add_argument(*_spellings("warmup_lr"), dest="warmup_lr", action="store_const", const="", help=hidden)
    for flag in REMEDIES:
        parser.add_argument(*_spellings(flag), dest=flag, nargs="?", action=_Refused, help=hidden)
    parser.add_argument("--print-config", action="store_true", help="print the settings and stop")
    parser.add_argument("--run-folder", metavar="FOLDER", help="where to write; default: a new folder in runs/")
    parser.add_argument("--resume", "-r", action="store_true", help="go on with a run that was stopped")
    parser.add_argument("--teacher-check", metavar="N", help="measure the teacher on N images first; default: 256")


def _spellings(flag: str) -> Sequence[str]:
    return tuple(dict.fromkeys((f"--{flag}", f"--{flag.replace('_', '-')}")))


def run(arguments: argparse.Namespace, console: Console) -> None:
    from fastadaad import cli
    from fastadaad.cli.authors_program import translate

    given = {flag: getattr(arguments, flag) for flag in (*FLAGS, "warmup_lr") if getattr(arguments, flag) is not None}
    cpu_note = _cpu_note(given)
    words, without_effect = translate(given, arguments.overrides)
    words = ["train", *words, *_passed_on(arguments)]
    if os.environ.get("RANK", "0") == "0":  # only rank 0 prints
        # With --print-config only the settings go to standard output.
        say = Console(stderr=True) if arguments.print_config else console
        if cpu_note:
            say.print(cpu_note, markup=False, highlight=False)
        for flag in without_effect:
            say.print(f"--{flag} has no effect on this method", markup=False, highlight=False)
        say.print(f"fastadaad {shlex.join(words)}", markup=False, highlight=False, soft_wrap=True)
    train = cli.parse(words)
    train.run(train, console)


def _cpu_note(given: dict[str, str]) -> str | None:
    """Removes --gpu_id on a machine without a GPU, on which the program goes on on the CPU; returns a line about it."""
    if "gpu_id" not in given:
        return None
    import torch

    if torch.cuda.is_available():
        return None
    number = given.pop("gpu_id")
    from fastadaad.cli.authors_program import device_name

    device_name(number)  # a list of GPUs is an error here too
    return f"--gpu_id {number}: this machine has no GPU that torch can use, so the run is on the CPU"


def _passed_on(arguments: argparse.Namespace) -> list[str]:
    """Options that are passed on to `fastadaad train`."""
    words = [f"--{name}" for name in ("print-config", "resume") if getattr(arguments, name.replace("-", "_"))]
    for name in ("run-folder", "teacher-check"):
        value = getattr(arguments, name.replace("-", "_"))
        words += [] if value is None else [f"--{name}", value]
    return words
