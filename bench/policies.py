"""Accuracy of one recipe's students under each teacher policy, over several seeds: `python -m bench policies`.

Every setting uses the same seeds. Students are trained and attacked as by `fastadaad compare`, in experiments kept on
disk, so that several processes can share the work. `--speed` measures images/s of the settings instead and needs an
otherwise idle machine; `--draw` makes the picture and the table.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fastadaad import recipes
from fastadaad.cli.comparison.experiment import Experiment, finish
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.config_io import override
from fastadaad.evaluation import AttackResult
from fastadaad.run_config import RunConfig

from .networks import PAIRS
from .policy_kl import kl_rows
from .policy_speed import speed_rows
from .policy_table import label, plot, policy_lines, table
from .readme import rewritten
from .timing import RESULTS, write_rows

SPEED_ROUNDS = 15
RADII = (1.0, 2.0)  # multiples of the recipe's radius
RECIPE = "fashion-mnist-small"
OVERRIDES = ("student.name=rescnn-8", "mode=compiled", "evaluation.every_epochs=100")
# Teacher policy and precision of the teacher.
SETTINGS = (
    ("exact", "fp32"),
    ("refreshed(every=10)", "fp32"),
    ("refreshed(every=8)", "fp32"),
    ("refreshed(every=5)", "fp32"),
    ("refreshed", "fp32"),
    ("linearized(top=3,every=10)", "fp32"),
    ("linearized(top=1,every=10)", "fp32"),
    ("linearized(top=3)", "fp32"),
    ("refreshed(every=8)", "bf16"),
)


def config_of(base: RunConfig, policy: str, precision: str, seed: int) -> RunConfig:
    """Returns `base` with a teacher policy, the teacher's precision and a seed."""
    assert base.teacher is not None
    return replace(
        base,
        seed=seed,
        teacher=replace(base.teacher, policy=TeacherPolicy.parse(policy)),
        precision=PrecisionConfig(student="fp32", teacher=precision),
    )


def experiments_of(
    base: RunConfig, seeds: Sequence[int], attacks: tuple[str, ...], num_images: int | None, folder: Path
):
    """Returns one experiment per seed and setting, with all settings of a seed together.

    Args:
        base: Configuration without policy, precision and seed.
        seeds: Seeds of the trainings.
        attacks: Attacks of the evaluation.
        num_images: Test images that are attacked; None for all.
        folder: Folder of the experiments.
    """
    evaluation = replace(base.evaluation, attacks=attacks, num_images=num_images)
    base = replace(base, evaluation=evaluation)
    return [
        Experiment(config_of(base, policy, precision, seed), folder, label=label(policy, precision))
        for seed in seeds
        for policy, precision in SETTINGS
    ]


def rows(experiments: Sequence[Experiment]) -> Iterator[dict[str, object]]:
    """Yields one row per experiment and attack."""
    for experiment in experiments:
        assert experiment.config.teacher is not None
        for result in experiment.results:
            yield {
                "recipe": experiment.config.recipe,
                "student": experiment.config.student.name,
                "teacher": experiment.config.teacher.name,
                "policy": str(experiment.config.teacher.policy),
                "teacher_precision": experiment.config.precision.teacher,
                "seed": experiment.config.seed,
                "epochs": experiment.config.optim.epochs,
                **columns(result),
            }


def columns(result: AttackResult) -> dict[str, object]:
    row = result.row()
    return {name: row[name] for name in ("attack", "epsilon", "num_images", "accuracy", "margin")}


def measure_speed() -> None:
    device, path = torch.device("cpu"), RESULTS / "policies-speed.csv"
    path.unlink(missing_ok=True)
    write_rows(path, list(speed_rows(PAIRS["rescnn"], SETTINGS, SPEED_ROUNDS, device)), device)


def measure_kl(base: RunConfig, student: Path) -> None:
    path = RESULTS / "policies-kl.csv"
    path.unlink(missing_ok=True)
    for radius in RADII:
        write_rows(path, list(kl_rows(base, student, radius)), torch.device("cpu"))


def draw() -> None:
    lines = policy_lines(RESULTS)
    docs = RESULTS.parents[1] / "docs"
    plot(docs / "policies.png", lines)
    page = docs / "performance.md"
    page.write_text(rewritten(page.read_text(), table(lines)))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench policies", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help=f"on top of {' '.join(OVERRIDES)}")
    parser.add_argument("--recipe", default=RECIPE, help="default: %(default)s")
    parser.add_argument("--seeds", default="0,1,2", help="default: %(default)s")
    parser.add_argument("--autoattack-images", type=int, default=500, metavar="N", help="default: %(default)s")
    parser.add_argument("--folder", type=Path, default=Path("runs/policies"), help="default: %(default)s")
    parser.add_argument("--work", action="store_true", help="share the work of another process; write no rows")
    parser.add_argument("--output", type=Path, default=RESULTS / "policies.csv", help="default: %(default)s")
    parser.add_argument("--speed", action="store_true", help="measure images/s instead, into policies-speed.csv")
    parser.add_argument("--kl", type=Path, metavar="STUDENT", help="measure the kl reached instead: policies-kl.csv")
    parser.add_argument(
        "--draw", action="store_true", help="draw docs/policies.png and write the table of docs/performance.md instead"
    )
    options = parser.parse_args(argv)
    if options.speed or options.draw:
        (measure_speed if options.speed else draw)()
        return
    base = override(recipes.get(options.recipe), [*OVERRIDES, *options.overrides])
    if options.kl:
        measure_kl(base, options.kl)
        return
    seeds = [int(seed) for seed in options.seeds.split(",")]
    measured = []
    for attacks, num_images in ((("natural", "pgd20"), None), (("autoattack",), options.autoattack_images)):
        batch = experiments_of(base, seeds, attacks, num_images, options.folder)
        finish(batch, Console())
        measured += rows(batch)
    if not options.work:
        write_rows(options.output, measured, torch.device("cpu"))
