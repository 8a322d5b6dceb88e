"""An experiment of a comparison: one student, trained and attacked, in a folder named by the digest of its facts.

A finished training and each finished attack is a file that is written atomically, so an interrupted comparison resumes.
An experiment that another process works on is locked; the lock ends with its process.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from fastadaad import methods
from fastadaad.evaluation import AttackResult
from fastadaad.run_config import EvaluationConfig, ModelConfig, RunConfig
from fastadaad.runtime.files import write_atomically
from fastadaad.runtime.json_files import JsonError, read_json
from fastadaad.runtime.locks import locked
from fastadaad.training.build import build_model, build_teacher, resolve_device
from fastadaad.training.checkpoint import checkpoint_paths
from fastadaad.training.data import TrainingData, training_data
from fastadaad.training.evaluation import evaluate_on_test_set
from fastadaad.training.fingerprint import place, sha256_of, training_facts
from fastadaad.training.trainer import Trainer

REMEDY = "delete it, and the attack runs again"
# Seconds between two checks of the experiments that other processes work on.
POLL_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """Content of training.json, written when the training is finished."""

    best_epoch: int
    images_per_s: float
    seconds: float


def _digest(facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


class Experiment:
    """Training and attacks of one student, or attacks of its teacher.

    Args:
        config: Configuration of the student's run.
        folder: Folder of all experiments.
        label: Text in the method's column of the table.
        is_teacher: The experiment is the teacher of `config`, which is attacked but not trained.
    """

    def __init__(self, config: RunConfig, folder: Path, *, label: str, is_teacher: bool = False) -> None:
        if not is_teacher and not methods.get(config.method).needs_teacher:
            config = replace(config, teacher=None)  # the student does not depend on the teacher
        self.config, self.label, self.is_teacher = config, label, is_teacher
        if is_teacher:
            assert config.teacher is not None
            self.network, self.name = config.teacher.name, "teacher"
            facts: object = [
                config.teacher.name, sha256_of(config.teacher.checkpoint), config.teacher.prefix,
                config.data.name, place(config.data),
            ]  # fmt: skip
        else:
            self.network, self.name = config.student.name, f"{config.student.name} {config.method} seed {config.seed}"
            facts = training_facts(config)
        self.folder = folder / f"{self.name.replace(' ', '_').replace('/', '-')}_{_digest(facts)}"

    @property
    def training(self) -> Training | None:
        """Result of the training; None if it is not finished."""
        path = self.folder / "training.json"
        return read_json(path, Training, f"delete {self.folder}, and it is trained again") if path.exists() else None

    def result(self, attack: str) -> AttackResult | None:
        """Result of an attack; None if it is not finished."""
        path = self._result_path(attack)
        if not path.exists():
            return None
        result = read_json(path, AttackResult, REMEDY)
        threat_model = self.config.evaluation.threat_model
        if (result.attack, result.norm, result.epsilon) != (attack, threat_model.norm, threat_model.epsilon):
            raise JsonError(f"{path} has the result of another attack: {REMEDY}")
        return result

    @property
    def results(self) -> list[AttackResult]:
        """Results of the finished attacks of the configuration."""
        results = [self.result(attack) for attack in self.config.evaluation.attacks]
        return [result for result in results if result is not None]

    @property
    def is_finished(self) -> bool:
        """True if the training and all attacks are finished."""
        trained = self.is_teacher or self.training is not None
        return trained and len(self.results) == len(self.config.evaluation.attacks)

    def train(self, console: Console) -> None:
        """Trains the student, unless it is trained already or the experiment is a teacher's."""
        if self.is_teacher or self.training is not None:
            return
        trainer = Trainer(self.config, self.folder, console, resume=bool(checkpoint_paths(self.folder)))
        with trainer.data.fitting_threads(trainer.device):
            result = trainer.train()
        # The next run cannot use the graphs of this one, and torch.compile keeps only a few per function.
        torch.compiler.reset()
        training = Training(best_epoch=result.best_epoch, images_per_s=result.images_per_s, seconds=result.seconds)
        write_atomically(self.folder / "training.json", json.dumps(asdict(training)).encode())

    def attack(self, console: Console) -> None:
        """Runs the attacks of the configuration that are not finished."""
        missing = [attack for attack in self.config.evaluation.attacks if self.result(attack) is None]
        if missing:
            model, data = self.load()
            with data.fitting_threads(resolve_device(self.config.device)):
                for attack in missing:
                    self._attack(model, data, attack, console)

    def load(self) -> tuple[nn.Module, TrainingData]:
        """Loads the student of the best epoch, or the teacher, and its data."""
        config, device = self.config, resolve_device(self.config.device)
        data = training_data(config, device)
        if self.is_teacher:
            assert config.teacher is not None
            return build_teacher(config.teacher, data, device), data
        best = ModelConfig(name=config.student.name, checkpoint=str(self.folder / "best.safetensors"))
        return build_model(best, data, device), data

    def _attack(self, model: nn.Module, data: TrainingData, attack: str, console: Console) -> None:
        path = self._result_path(attack)
        config = replace(self.config, evaluation=replace(self.config.evaluation, attacks=(attack,)))
        (result,) = evaluate_on_test_set(model, config, data, console, self.name, state=path.parent / "state")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(result)).encode())

    def _result_path(self, attack: str) -> Path:
        evaluation: EvaluationConfig = self.config.evaluation
        facts = [
            asdict(evaluation.threat_model), evaluation.restarts, evaluation.num_images,
            evaluation.batch_size, self.config.seed,
        ]  # fmt: skip
        return self.folder / "attacks" / f"{attack}_{_digest(facts)}.json"


def experiment_lock(folder: Path) -> AbstractContextManager[bool]:
    """Locks an experiment's folder, which need not exist; yields True if this process got the lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.lock"
    path.touch()
    return locked(path)


def finish(experiments: Iterable[Experiment], console: Console) -> None:
    """Trains and attacks all unfinished experiments; waits for those that another process works on."""
    pending = [experiment for experiment in experiments if not experiment.is_finished]
    while pending:
        elsewhere = []
        for experiment in pending:
            with experiment_lock(experiment.folder) as own:
                if own:
                    experiment.train(console)
                    experiment.attack(console)
                else:
                    elsewhere.append(experiment)
        if len(elsewhere) == len(pending):
            time.sleep(POLL_S)
        pending = elsewhere
