"""Judge of teacher policies: share of the exact search's kl by passes through the teacher: `python -m bench judge`.

`--train` first trains the students: one exact training that is long enough for the student to come close to its
teacher, and is kept at some epochs. Every candidate of policy_candidates.py then searches around the same
test images, from the same start.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastadaad import InnerMaximizer, ops
from fastadaad.config import InnerConfig
from fastadaad.inner.search import tape_vjp
from fastadaad.run_config import ModelConfig, RunConfig
from fastadaad.training.build import build_model, build_teacher
from fastadaad.training.data import training_data

from .pages import rows_of
from .policy_candidates import CANDIDATES, EXACT, Candidate
from .policy_plot import plot
from .policy_students import EPOCHS, long_run, student_path, train
from .rows import RESULTS, write_rows
from .tables import print_rows

NUM_IMAGES = 256
RADII = (1.0, 1.5)  # multiples of the radius of the training
ROWS, PICTURE = RESULTS / "policies-judge.csv", RESULTS.parents[1] / "docs" / "policies-judge.png"
SHOWN = ("epoch", "epsilon", "candidate", "teacher_passes", "student_passes", "kl_of_exact", "mean_kl")


def judge(
    student: nn.Module,
    teacher: nn.Module,
    x_natural: Tensor,
    inner: InnerConfig,
    candidates: Iterable[Candidate] = CANDIDATES,
) -> Iterator[dict[str, object]]:
    """Yields a row for the exact search and one for each candidate.

    Args:
        student: Student in eval mode.
        teacher: Teacher in eval mode.
        x_natural: Natural images [B, C, H, W].
        inner: Threat model, step size and number of steps of the exact search.
        candidates: Searches to compare.
    """
    maximizer = InnerMaximizer(student, teacher, inner=inner, mode="eager")
    start = maximizer.start_point(x_natural, torch.Generator().manual_seed(0))
    exact = None
    with maximizer.networks(x_natural) as networks:
        search = replace(maximizer.new_search(networks, x_natural, None), vjp=tape_vjp)
        for candidate in (EXACT, *candidates):
            x_adv = start.clone()
            candidate.run(search, x_adv)
            with torch.no_grad():
                kl = ops.kl_grad(student(x_adv), teacher(x_adv))[0].mean().item()
            exact = kl if exact is None else exact
            yield {
                "kind": "exact" if candidate is EXACT else candidate.kind,
                "candidate": "exact" if candidate is EXACT else candidate.name,
                "teacher_passes": candidate.teacher_passes,
                "student_passes": candidate.student_passes,
                "kl_of_exact": round(kl / exact, 4),
                "mean_kl": round(kl, 5),
                "num_images": len(x_natural),
            }


def rows(config: RunConfig, folder: Path, epochs: Sequence[int]) -> Iterator[dict[str, object]]:
    """Yields the rows of all students and radii.

    Args:
        config: Configuration of the run that trained the students.
        folder: Its folder.
        epochs: Epochs after which the students were kept.
    """
    device = torch.device("cpu")
    data = training_data(config, device)
    assert config.teacher is not None
    teacher = build_teacher(config.teacher, data, device).eval()
    x_natural = next(x for x, _ in data.test.epoch(0))[:NUM_IMAGES]
    for epoch in epochs:
        weights = ModelConfig(name=config.student.name, checkpoint=str(student_path(folder, epoch)))
        student = build_model(weights, data, device).eval()
        for radius in RADII:
            ball = replace(config.inner.threat_model, epsilon=radius * config.inner.threat_model.epsilon)
            inner = replace(config.inner, threat_model=ball, step_size=radius * config.inner.step_size)
            facts = {"student": config.student.name, "teacher": config.teacher.name, "epoch": epoch}
            for row in judge(student, teacher, x_natural, inner):
                yield {**facts, "epsilon": round(ball.epsilon, 4), **row}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench judge", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/judge"), help="of the training; default: %(default)s")
    parser.add_argument("--train", action="store_true", help="train the students first, or go on with that")
    parser.add_argument("--draw", action="store_true", help="draw the rows of bench/results again, and measure nothing")
    options = parser.parse_args(argv)
    if options.train:
        train(options.folder)
    if not options.draw:
        measured = list(rows(long_run(), options.folder, EPOCHS))
        print_rows(measured, SHOWN, "share of the exact kl")
        ROWS.unlink(missing_ok=True)
        write_rows(ROWS, measured, torch.device("cpu"))
    plot(PICTURE, rows_of(ROWS))
