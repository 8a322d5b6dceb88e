"""A whole run in one call: training, and evaluation of the best epoch."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fastadaad.evaluation import AttackResult
from fastadaad.run_config import RunConfig
from fastadaad.training.trainer import Trainer


def train(
    config: RunConfig,
    folder: str | Path,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
    console: Console | None = None,
) -> list[AttackResult]:
    """Trains the student of `config`, and evaluates its best epoch on the test set.

    Args:
        config: Complete configuration, such as fastadaad.recipes.get("demo").
        folder: Folder of the run.
        resume: Resume from the last checkpoint in `folder`, if there is one.
        allow: Settings that a resumed run changes, as Trainer has them.
        console: Console for messages and progress. Default: standard output.

    Returns:
        One result per attack of config.evaluation.

    Raises:
        Exception: As Trainer and Trainer.train.
    """
    trainer = Trainer(config, Path(folder), console, resume=resume, allow=allow)
    trainer.train()
    return trainer.evaluate_best(config.method)
