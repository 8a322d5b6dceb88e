"""Students of one long exact training, kept at some epochs: `python -m bench judge --train`.

What a policy must follow changes over a training: the closer the student is to its teacher, the smaller is the
difference of two gradients that the search climbs.
"""

from pathlib import Path

from rich.console import Console

from fastadaad import recipes
from fastadaad.config_io import override
from fastadaad.run_config import RunConfig
from fastadaad.training.trainer import Trainer

RECIPE = "fashion-mnist"
OVERRIDES = ("data.num_samples=2000", "optim.epochs=120", "evaluation.every_epochs=10", "mode=compiled")
EPOCHS = (5, 30, 60, 120)


def long_run() -> RunConfig:
    """Exact AdaAD for 120 epochs on 2,000 images."""
    return override(recipes.get(RECIPE), [*OVERRIDES])


def student_path(folder: Path, epoch: int) -> Path:
    """File of the student after some epochs."""
    return folder / f"epoch-{epoch}.safetensors"


class KeepingTrainer(Trainer):
    """Trainer that also keeps the students of EPOCHS."""

    def _write_results(self, run_log) -> None:
        super()._write_results(run_log)
        epoch, last = len(self.state.rows), self.folder / "last.safetensors"
        if epoch in EPOCHS and last.exists() and not student_path(self.folder, epoch).exists():
            student_path(self.folder, epoch).write_bytes(last.read_bytes())


def train(folder: Path) -> None:
    """Trains the students, or goes on with a training that was stopped."""
    KeepingTrainer(long_run(), folder, Console(), resume=True).train()
