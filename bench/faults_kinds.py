"""Kinds of run that are killed at random moments: each method, optimizer and engine, comparisons and evaluations.

Each run is killed by SIGKILL several times, started again by the same command line, and compared at its end with an
undisturbed run of its kind.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fastadaad.cli import main as fastadaad

from .faults_forks import ForkedChild
from .faults_run import TIMED, Struck, untimed_rows

SMALL = (
    "demo", "optim.epochs=3", "inner.num_steps=2", "teacher_check=0", "deterministic=true", "device=cpu",
    "checkpoint_every=2", "evaluation.validation_attack=pgd2", "evaluation.attacks=[natural,pgd2]",
    "evaluation.num_images=200",
)  # fmt: skip
TRAIN = ("train", *SMALL, "--resume")
EVALUATED = "evaluated"  # the finished run that the evaluations attack
MAX_TRIES = 20
POLL_S = 0.002

Differences = Callable[[Path, Path], list[str]]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A command line, whose run is in a folder that `words` names by {folder}."""

    words: tuple[str, ...]
    differences: Differences


def files_of_run(whole: Path, folder: Path) -> list[str]:
    """Lists the files of a training that differ."""
    return [
        name
        for name in ("last.safetensors", "best.safetensors")
        if not (folder / name).exists() or (folder / name).read_bytes() != (whole / name).read_bytes()
    ] + tables("metrics.csv", "results.csv")(whole, folder)


def tables(*names: str) -> Differences:
    """Returns a function that lists the tables that differ, apart from times."""
    timed = (*TIMED, "train_images_per_s", "train_seconds", "parts")

    def rows(path: Path) -> list[dict[str, str]]:
        return [{name: text for name, text in row.items() if name not in timed} for row in untimed_rows(path)]

    return lambda whole, folder: [
        name for name in names if not (folder / name).exists() or rows(folder / name) != rows(whole / name)
    ]


def weights_of_experiments(whole: Path, folder: Path) -> list[str]:
    """Lists what differs between two comparisons: tables, and weights of the experiments."""
    paths = [path.relative_to(whole) for path in sorted(whole.glob("experiments/*/best.safetensors"))]
    found = [str(path) for path in paths if (folder / path).read_bytes() != (whole / path).read_bytes()]
    return found + tables("results.csv")(whole, folder)


def training(*words: str) -> Kind:
    return Kind(words=(*TRAIN, *words, "--run-folder", "{folder}"), differences=files_of_run)


def evaluation(attack: str) -> Kind:
    words = ("evaluate", EVALUATED, "--attacks", attack, "-n", "40", "evaluation.batch_size=8")
    options = ("--state", "{folder}/state", "--csv", "{folder}/results.csv")
    return Kind(words=(*words, *options), differences=tables("results.csv"))


METHODS = (
    "adaad",
    "adaiad",
    "pgd-at",
    "trades",
    "mart",
    "lbgat-fixed",
    "ard",
    "iad",
    "rslad",
    "akd",
    "saad",
    "adaad+igdm",
)
COMPARISON = ("--attacks", "natural,pgd2", "--run-folder", "{folder}")
KINDS = {
    **{f"train {method}": training("--method", method) for method in METHODS},
    "train with EMA": training("optim.ema_decay=0.9"),
    "train with SWA": training("optim.swa_begin=0.3", "optim.ema_decay=0"),
    "train with AWP": training("optim.awp_gamma=0.005"),
    "train with AdamW": training("optim.optimizer=adamw", "optim.learning_rate=0.01", "optim.nesterov=false"),
    "train with LARS": training("optim.optimizer=lars", "optim.learning_rate=1", "optim.nesterov=false"),
    "train with LAMB": training("optim.optimizer=lamb", "optim.learning_rate=0.01", "optim.nesterov=false"),
    "train with clipped gradients": training("optim.grad_clip=0.5"),
    "train in micro-batches": training("optim.micro_batch=16"),
    "train with mixup and CutMix": training("--method", "trades", "data.mixup=0.4", "data.cutmix=1"),
    "train with a refreshed teacher": training("teacher.policy=refreshed"),
    "train with a linearized teacher": training("teacher.policy=linearized"),
    "train with the torch engine": training("data.engine=torch"),
    "train with the dali engine": training("data.engine=dali"),
    "compare": Kind(
        words=("compare", *SMALL[:1], "--methods", "pgd-at,adaad", *SMALL[1:], *COMPARISON),
        differences=weights_of_experiments,
    ),
    "sweep-epsilon": Kind(
        words=("sweep-epsilon", *SMALL[:1], "--epsilons", "0.05,0.1", *SMALL[1:], *COMPARISON),
        differences=weights_of_experiments,
    ),
    "evaluate cw": evaluation("cw10"),
    "evaluate autoattack": evaluation("autoattack"),
}  # fmt: skip


def command(words: tuple[str, ...], folder: Path) -> int:
    """Runs a command line in the folder above `folder`."""
    os.chdir(folder.parent)
    if words[0] == "evaluate":
        folder.mkdir(exist_ok=True)
    return fastadaad([word.format(folder=folder) for word in words])


def run(kind: Kind, folder: Path, output: Path) -> ForkedChild:
    return ForkedChild(command, output, kind.words, folder, daemon=False)


def undisturbed(kind: Kind, folder: Path) -> float:
    """Runs a kind without a fault; returns its seconds."""
    started = time.monotonic()
    if code := run(kind, folder, folder.with_suffix(".txt")).wait():
        raise RuntimeError(f"a run without a fault ended with exit code {code}, see {folder.with_suffix('.txt')}")
    return time.monotonic() - started


def killed(name: str, place: Path, count: int, seed: int) -> Iterator[Struck]:
    """Kills runs of one kind `count` times in all, and yields each kill with the outcome of its run.

    Args:
        name: Key of KINDS.
        place: Folder of the runs, which is empty.
        count: Number of kills, up to two per run.
        seed: Seed of the moments.
    """
    kind, draws = KINDS[name], random.Random(f"{seed} {name}")
    whole = place / "whole"
    if kind.words[0] == "evaluate":
        undisturbed(training(), place / EVALUATED)
    seconds = undisturbed(kind, whole)
    left, number = count, 0
    while left:
        number += 1
        if number > MAX_TRIES:
            raise RuntimeError(f"{name}: the runs ended before the kills")
        folder = place / f"run-{number}"
        struck = [each for each in (_strike(kind, folder, seconds, draws) for _ in range(min(2, left))) if each]
        code = run(kind, folder, folder.with_suffix(".txt")).wait()
        problems = [f"exit code {code}"] if code else kind.differences(whole, folder)
        for each in struck:
            each.name, each.run, each.equal, each.went_on = name, number, not problems, not code
        yield from struck
        left -= len(struck)
        if not problems:
            shutil.rmtree(folder)


def _strike(kind: Kind, folder: Path, seconds: float, draws: random.Random) -> Struck | None:
    """Kills a process of the run at a random moment; returns None if it had ended before."""
    child = run(kind, folder, folder.with_suffix(".txt"))
    until = time.monotonic() + draws.uniform(0.1, 0.7) * seconds
    while time.monotonic() < until and child.poll() is None:
        time.sleep(POLL_S)
    child.send_signal(signal.SIGKILL)
    code = child.wait()
    if code == 0:
        shutil.rmtree(folder)
        return None
    return Struck(name="", step=0, ended_well=code == -signal.SIGKILL)
