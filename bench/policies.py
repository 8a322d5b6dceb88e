"""Accuracy of one recipe's students under each teacher policy, over several seeds: `python -m bench policies`.

Every setting uses the same seeds. Students are trained and attacked as by `fastadaad compare`, in experiments kept on
disk, so that several processes can share the work. `--speed` measures images/s of the settings instead and needs an
otherwise idle machine; `--draw` makes the picture and the table.
"""

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastadaad.cli.comparison.experiment import Experiment, finish
from fastadaad.evaluation import AttackResult
from fastadaad.run_config import RunConfig

from . import long_table
from .networks import PAIRS
from .pages import rewritten, rows_of
from .policy_kl import kl_rows
from .policy_settings import TABLES, Setting, Table
from .policy_speed import speed_rows
from .policy_table import plot, policy_lines, table
from .rows import RESULTS, replace_rows, write_rows

SPEED_ROUNDS = 15
RADII = (1.0, 2.0)  # multiples of the recipe's radius


def experiments_of(
    chosen: Table,
    seeds: Sequence[int],
    attacks: tuple[str, ...],
    num_images: int | None,
    folder: Path,
    overrides: tuple[str, ...] = (),
) -> list[tuple[Setting, Experiment]]:
    """Returns each setting with its experiment, all settings of a seed together.

    Args:
        chosen: Table whose students are trained.
        seeds: Seeds of the trainings.
        attacks: Attacks of the evaluation.
        num_images: Test images that are attacked; None for all.
        folder: Folder of the experiments.
        overrides: Changes of all settings.
    """
    experiments = []
    for seed in seeds:
        for setting in chosen.settings:
            config = chosen.config(setting, seed, overrides)
            evaluation = replace(config.evaluation, attacks=attacks, num_images=num_images)
            experiments.append(
                (setting, Experiment(replace(config, evaluation=evaluation), folder, label=setting.name))
            )
    return experiments


def rows(experiments: Sequence[tuple[Setting, Experiment]]) -> Iterator[dict[str, object]]:
    """Yields one row per experiment and attack."""
    for setting, experiment in experiments:
        config, runs = experiment.config, teacher_runs(experiment)
        for result in experiment.results:
            yield {
                "recipe": config.recipe,
                "student": config.student.name,
                "teacher": config.teacher.name if config.teacher else "",
                "setting": setting.name,
                "policy": setting.policy,
                "teacher_precision": setting.teacher_precision,
                "seed": config.seed,
                "epochs": config.optim.epochs,
                "teacher_runs": runs,
                **columns(result),
            }


def teacher_runs(experiment: Experiment) -> float:
    """Returns the mean number of teacher runs in a search, over the epochs: a probe may have shortened the interval."""
    if experiment.config.teacher is None:
        return 0.0
    steps, epochs = experiment.config.inner.num_steps, rows_of(experiment.folder / "metrics.csv")
    return round(statistics.fmean(math.ceil(steps / int(epoch["query_interval"] or 1)) for epoch in epochs), 2)


def columns(result: AttackResult) -> dict[str, object]:
    row = result.row()
    return {name: row[name] for name in ("attack", "epsilon", "num_images", "accuracy", "margin")}


def curve_rows(experiments: Sequence[tuple[Setting, Experiment]]) -> Iterator[dict[str, object]]:
    """Yields the accuracies on the validation split, the policy's last probe and interval, by setting, seed, epoch."""
    for setting, experiment in experiments:
        share = ""
        for row in rows_of(experiment.folder / "metrics.csv"):
            share = row["policy_kl_share"] or share
            if row["robust_accuracy"]:
                yield {
                    "setting": setting.name,
                    "seed": experiment.config.seed,
                    "epoch": row["epoch"],
                    "natural": row["natural_accuracy"],
                    "robust": row["robust_accuracy"],
                    "policy_kl_share": share,
                    "query_interval": row["query_interval"],
                }


def measure_speed(chosen: Table, path: Path) -> None:
    device = torch.device("cpu")
    path.unlink(missing_ok=True)
    write_rows(path, list(speed_rows(PAIRS["rescnn"], chosen, SPEED_ROUNDS, device)), device)


def measure_kl(base: RunConfig, student: Path) -> None:
    path = RESULTS / "policies-kl.csv"
    path.unlink(missing_ok=True)
    for radius in RADII:
        write_rows(path, list(kl_rows(base, student, radius)), torch.device("cpu"))


def draw() -> None:
    """Draws the pictures and writes the tables of docs/performance.md; those of long trainings if there are rows."""
    lines = policy_lines(RESULTS)
    docs = RESULTS.parents[1] / "docs"
    plot(docs / "policies.png", lines)
    page = docs / "performance.md"
    text = rewritten(page.read_text(), table(lines), "policies")
    for name in long_table.TABLE_NAMES:
        if curves := rows_of(RESULTS / f"policies-{name}-curves.csv"):
            long_table.plot(docs / f"policies-{name}.png", curves)
            text = rewritten(text, long_table.block(RESULTS, name), name)
    page.write_text(text)


def measure_accuracy(chosen: Table, suffix: str, options: argparse.Namespace) -> None:
    """Trains and attacks the students that are not finished, and writes the rows of all."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    measured: list[dict[str, object]] = []
    evaluations: list[tuple[tuple[str, ...], int | None]] = [(("natural", "pgd20"), chosen.num_images)]
    if options.autoattack_images:
        evaluations.append((("autoattack",), options.autoattack_images))
    for attacks, num_images in evaluations:
        batch = experiments_of(chosen, seeds, attacks, num_images, options.folder, tuple(options.overrides))
        finish([experiment for _, experiment in batch], Console())
        measured += rows(batch)
    if options.work:
        return
    written = {f"policies{suffix}.csv": measured, f"policies{suffix}-curves.csv": [*curve_rows(batch)]}
    for name, table_rows in written.items():
        if table_rows:
            replace_rows(options.output / name, table_rows, ("setting", "seed"))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench policies", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="changes of all settings")
    parser.add_argument("--table", choices=TABLES, default="short", help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument(
        "--autoattack-images", type=int, default=1000, metavar="N", help="0: no AutoAttack; default: %(default)s"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/policies"), help="default: %(default)s")
    parser.add_argument("--work", action="store_true", help="share the work of another process; write no rows")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows; default: bench/results")
    parser.add_argument("--speed", action="store_true", help="measure images/s instead")
    parser.add_argument("--kl", type=Path, metavar="STUDENT", help="measure the kl reached instead: policies-kl.csv")
    parser.add_argument(
        "--draw", action="store_true", help="draw the pictures and write the tables of the docs instead"
    )
    options = parser.parse_args(argv)
    chosen, suffix = TABLES[options.table], "" if options.table == "short" else f"-{options.table}"
    if options.draw:
        draw()
    elif options.speed:
        measure_speed(chosen, options.output / f"policies{suffix}-speed.csv")
    elif options.kl:
        measure_kl(chosen.config(Setting(), seed=0), options.kl)
    else:
        measure_accuracy(chosen, suffix, options)
