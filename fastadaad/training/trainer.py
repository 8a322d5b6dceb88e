"""A whole run: epochs of Distiller steps, the learning rate, when to evaluate and what to save."""

import json
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from torch import Tensor

from fastadaad import methods
from fastadaad.data.rank_agreement import fingerprint
from fastadaad.evaluation import check_attacks
from fastadaad.inner import precision_report
from fastadaad.models.weights_writing import serialized
from fastadaad.run_config import RunConfig
from fastadaad.runtime.determinism import deterministic_algorithms
from fastadaad.runtime.distributed import current_processes
from fastadaad.runtime.files import remove_temporaries
from fastadaad.runtime.locks import run_lock
from fastadaad.runtime.patient_files import PatientFiles
from fastadaad.runtime.progress import Counts, ImageProgress, image_progress
from fastadaad.runtime.random_states import own_random_states, random_states, restore_random_states
from fastadaad.runtime.signals import Interrupted, Interruption, interruption
from fastadaad.training.build import build_student, build_teacher, checked_mode, distiller_of, resolve_device
from fastadaad.training.checkpoint import (
    CHECKPOINTS,
    CheckpointError,
    CheckpointFacts,
    RunCheckpoint,
    checkpoint_paths,
    last_checkpoint,
    write_checkpoint,
)
from fastadaad.training.closing_lines import closing_lines
from fastadaad.training.data import training_data
from fastadaad.training.evaluation import evaluate_on_validation_split
from fastadaad.training.fingerprint import DATA, differences, training_facts, versions
from fastadaad.training.log import RunLog, precision_json
from fastadaad.training.nonfinite import NonFiniteError
from fastadaad.training.preflight import check_before_training
from fastadaad.training.schedule import learning_rate
from fastadaad.training.state import initial_state


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where a run's files are and which epoch its best.safetensors comes from."""

    folder: Path
    best_epoch: int
    best_robust_accuracy: float
    images_per_s: float
    seconds: float


class Trainer:
    """Trains the student of `config` and writes everything about the run to `folder`.

    Files: config.json, metrics.csv, tensorboard/, checkpoints/, last.safetensors, best.safetensors of the epoch with
    the highest robust accuracy on the validation split, precision.json where a network is not in fp32, and
    skipped_images.txt where image files were left out. A file that cannot be written does not end the training.

    With `resume` the run goes on from the last checkpoint in `folder` that can be used, where there is one. Raises
    CheckpointError where that is of another run, or none of several can be used. In a process group every process
    trains on its share of each batch, and the first one writes.
    """

    def __init__(
        self, config: RunConfig, folder: Path, console: Console | None = None, *, resume: bool = False
    ) -> None:
        check_attacks(config.evaluation.attacks, config.evaluation.threat_model)
        self.config, self.folder = config, folder
        self.processes = current_processes()
        self.console = (console or Console()) if self.processes.is_first else Console(quiet=True)
        self.device = resolve_device(config.device)
        self.data = training_data(config, self.device)
        self.state = initial_state(config, build_student(config, self.data, self.device), self.device)
        method = methods.get(config.method, **config.method_options)
        teacher = None
        if method.needs_teacher and config.teacher is not None:
            teacher = build_teacher(config.teacher, self.data, self.device)
        with self.console.status("self-check of this machine"):
            mode = checked_mode(config.mode, self.device, self._say)
        # A measured layout may be another one at the next run.
        layout = "contiguous" if config.deterministic and config.layout == "auto" else config.layout
        config = replace(config, mode=mode, layout=layout)
        self.distiller = distiller_of(config, self.state.student, teacher, self.state.optimizer)
        self._must_compile = self.distiller.mode != "eager"
        self._files = PatientFiles(self._say, enabled=self.processes.is_first)
        self._run_facts = json.loads(json.dumps(training_facts(self.config)))
        # With the extra images, which are behind the others.
        self._run_facts[DATA] = fingerprint(replace(self.data.dataset, train_images=self.data.train.images))
        self._check_same_on_all_ranks()
        self._counts, self._random_states = Counts(), None
        if resume:
            self._resume()

    def _check_same_on_all_ranks(self) -> None:
        """Raises ValueError where a process was started with other settings or has other teacher weights."""
        facts = self.processes.gathered(self._run_facts)
        for rank, other in enumerate(facts):
            if found := differences(facts[0], other):
                raise ValueError(
                    f"rank {rank} has another run than rank 0: {', '.join(found)}; start all of them alike"
                )

    def _resume(self) -> None:
        """Go on from the last checkpoint, where there is one."""
        checkpoint = None
        if self.processes.is_first and self.folder.is_dir():
            with run_lock(self.folder):  # the temporary files of a process that trains in it now are no left-overs
                for folder in (self.folder, self.folder / CHECKPOINTS):
                    remove_temporaries(folder)
                checkpoint = last_checkpoint(self.folder, self._say)
        checkpoint = self.processes.from_first(checkpoint)
        if checkpoint is None:
            self._say(f"{self.folder} has no checkpoint: the run starts from its beginning")
            return
        self._check_same_run(checkpoint)
        try:
            self._load(checkpoint.state)
            place = "finished" if self._is_finished() else self._place()
        except Exception as error:  # a stranger's file may have anything in any place
            raise CheckpointError(
                f"{checkpoint.path} has not what this version keeps ({' '.join(str(error).split())}): go on with the "
                "version that wrote it, or give another --run-folder"
            ) from error
        self._say(f"going on from {checkpoint.path}: {place}")

    def _load(self, state: dict[str, Any]) -> None:
        """What _save_checkpoint saved."""
        self.state.load_state_dict(state["training"])
        self.distiller.load_state_dict(state["distiller"])
        self._counts = Counts(**state["counts"])
        if self.processes.rank < len(state["random_states"]):
            self._random_states = saved = state["random_states"][self.processes.rank]
            with own_random_states(self.config.seed):
                restore_random_states(saved)  # whether that can be done

    def _check_same_run(self, checkpoint: RunCheckpoint) -> None:
        """Raises CheckpointError where another run left the checkpoint; says what may make a difference in rounding."""
        facts, path = checkpoint.facts, checkpoint.path
        if found := differences(facts.run, self._run_facts):
            raise CheckpointError(
                f"{path} is of another run than the one asked for: {', '.join(found)}; ask for the same, or give "
                "another --run-folder"
            )
        saved = facts.versions | {"processes": facts.processes}
        if found := differences(saved, versions() | {"processes": self.processes.count}):
            self._say(f"the rest of the run may differ in rounding from an uninterrupted one: {', '.join(found)}")

    def train(self) -> TrainingResult:
        """Run all epochs, or until early stopping.

        Raises Interrupted after SIGTERM or SIGINT, when the step is finished and saved; OSError where a file could not
        be written to the end; ValueError where another process trains in the folder; NonFiniteError where NaN or inf
        was met (see RunConfig.on_nonfinite).
        """
        seed = self.config.seed + self.processes.rank
        with own_random_states(seed), deterministic_algorithms(self.config.deterministic):
            if self._random_states is None:
                check_before_training(self.config, self.data, self.state.student, self.distiller.teacher, self._say)
            else:
                restore_random_states(self._random_states)
            with interruption(self._say) as asked:
                result = self._train(asked)
                if self._is_asked_to_stop(asked):  # too late for a step to see it
                    raise self._interrupted("after the last epoch, and saved", asked)
            return result

    def _train(self, asked: Interruption) -> TrainingResult:
        config, state, data = self.config, self.state, self.data
        total_images = config.optim.epochs * len(data.train) * config.data.batch_size
        title = f"{config.recipe} {config.method} seed {config.seed}"
        self._say(f"{title}: {self.distiller.mode} mode on {self.device}")
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
        with (
            run_lock(self.folder) if self.processes.is_first else nullcontext(),
            RunLog(self.folder, config, self._files, state.step) as log,
            image_progress(self.console, title, total_images, self._counts) as progress,
        ):
            self._write_results(log)  # what a crash may have kept from being written
            if self._random_states is None:
                with progress.clock_stopped():
                    self._report_precision("start")
            while not self._is_finished():
                if state.epoch == len(state.rows):
                    self._train_epoch(progress, asked)
                self._finish_epoch(progress, asked, log)
        result = TrainingResult(
            folder=self.folder,
            best_epoch=state.best_epoch,
            best_robust_accuracy=state.best_robust_accuracy,
            images_per_s=progress.images_per_s,
            seconds=progress.seconds,
        )
        self._report_precision("end")
        for line in closing_lines(self.distiller, progress):
            self._say(line)
        self._report_skipped_images()
        self._files.require()
        return result

    def _is_finished(self) -> bool:
        config, num_epochs = self.config, len(self.state.rows)
        patience = config.early_stop_epochs
        gave_up = patience is not None and num_epochs - self.state.best_epoch >= patience
        return num_epochs == config.optim.epochs or gave_up

    def _train_epoch(self, progress: ImageProgress, asked: Interruption) -> None:
        """The rest of a pass over the training set."""
        config, state = self.config, self.state
        steps_per_epoch = len(self.data.train)
        batches = self.data.train.epoch(state.epoch, start_batch=state.step - state.epoch * steps_per_epoch)
        for x_natural, labels in progress.waited_for(batches):
            share_done = state.step / (config.optim.epochs * steps_per_epoch)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(share_done, config.optim, config.data.batch_size)
            state.note_loss(self._step(x_natural, labels, progress))
            if state.averaged is not None and config.optim.ema_decay:
                state.averaged.update_parameters(state.student)
            state.step += 1
            self.processes.progress()
            self._after_step(progress, asked)
        self.processes.pause()
        state.epoch += 1
        self._average_epoch()

    def _step(self, x_natural: Tensor, labels: Tensor, progress: ImageProgress) -> Tensor:
        """The loss of one step of the distiller; the first, where it compiles, is no part of images/s."""
        epoch, generator = self.state.epoch, self.state.generator
        before = time.perf_counter()
        with progress.clock_stopped("compiling") if self._must_compile else nullcontext():
            result = self.distiller.step(x_natural, labels, epoch=epoch, generator=generator)
            progress.advance(len(labels) * self.processes.count)
        if self._must_compile:
            self._must_compile = False
            self._say(f"compiled in {time.perf_counter() - before:.0f} s")
        return result.loss

    def _after_step(self, progress: ImageProgress, asked: Interruption) -> None:
        """What does not happen at each step: the only host synchronisations of the loop."""
        config, state = self.config, self.state
        num_steps = state.step - state.epoch * len(self.data.train)
        is_logged = state.step % config.log_every == 0
        if is_logged:
            with self.processes.waiting():  # for the device, which may wait for another process
                self._check_finite()
                loss = state.mean_loss()
            progress.advance(0, f"epoch {state.epoch + 1}/{config.optim.epochs}  loss {loss:.4f}")
        if (is_logged or self.processes.count == 1) and self._is_asked_to_stop(asked):
            self._save_and_stop(progress, asked)
        # At the end of an epoch there is one when it has been measured.
        if state.step % config.checkpoint_every == 0 and num_steps < len(self.data.train):
            self._save_checkpoint(progress)

    def _average_epoch(self) -> None:
        """SWA's part at the end of an epoch."""
        optim, state = self.config.optim, self.state
        if optim.swa_begin is not None and state.epoch > optim.swa_begin * optim.epochs:
            assert state.averaged is not None
            state.averaged.update_parameters(state.student)

    def _finish_epoch(self, progress: ImageProgress, asked: Interruption, log: RunLog) -> None:
        """Measure the student, and write what the epoch came to."""
        state = self.state
        with progress.clock_stopped():
            validation = self._validation(progress, asked)
            robust_accuracy = validation.get("robust_accuracy", -1.0)
            # Without a validation split the last epoch is the best that is known.
            if self.data.validation is None or robust_accuracy > state.best_robust_accuracy:
                state.best_epoch, state.best_robust_accuracy = state.epoch, robust_accuracy
            state.rows.append(self._metrics(validation, progress))
            state.losses.zero_()
            self._save_checkpoint(progress)
            self._write_results(log)
            log.show(state.rows[-1])

    def _validation(self, progress: ImageProgress, asked: Interruption) -> dict[str, float]:
        """Accuracies of the student after this epoch; none where it is not one to be measured."""
        config, epoch = self.config, self.state.epoch
        if epoch != config.optim.epochs and epoch % config.evaluation.every_epochs:
            return {}

        def stop_if_asked(part: str, num_images: int) -> None:
            if self.processes.count == 1 and self._is_asked_to_stop(asked):
                self._save_and_stop(progress, asked)

        return evaluate_on_validation_split(self.state.evaluated, config, self.data, progress=stop_if_asked)

    def _is_asked_to_stop(self, asked: Interruption) -> bool:
        """Whether any process got a signal; all of them ask at the same step."""
        numbers = self.processes.gathered(asked.signal_number)
        asked.signal_number = next((number for number in numbers if number is not None), None)
        return asked.signal_number is not None

    def _save_and_stop(self, progress: ImageProgress, asked: Interruption) -> NoReturn:
        """Raises Interrupted."""
        is_saved = self._save_checkpoint(progress)
        saved = "and saved" if is_saved else "which could not be saved: the checkpoint before it counts"
        raise self._interrupted(f"in {self._place()}, {saved}", asked)

    def _interrupted(self, place: str, asked: Interruption) -> Interrupted:
        assert asked.signal_number is not None
        return Interrupted(f"stopped {place}; start it again to go on (train: with --resume)", asked.signal_number)

    def _place(self) -> str:
        """Where the run is, in words."""
        num_epochs = self.config.optim.epochs
        return f"epoch {min(self.state.epoch + 1, num_epochs)} of {num_epochs}, step {self.state.step}"

    def _save_checkpoint(self, progress: ImageProgress) -> bool:
        """What a later process needs to go on from here, for it to end with the same weights; whether it is written."""
        self._check_finite()
        state = {
            "training": self.state.state_dict(),
            "distiller": self.distiller.state_dict(),
            "random_states": self.processes.gathered(random_states()),
            "counts": asdict(progress.counts),
        }
        facts = CheckpointFacts(
            run=self._run_facts,
            versions=versions(),
            processes=self.processes.count,
            epoch=self.state.epoch,
            epochs=self.config.optim.epochs,
            finished=self._is_finished(),
        )

        def write() -> None:
            self._files.require()  # a process that goes on from here does not write the best weights before it again
            write_checkpoint(self.folder, self.state.step, facts, state)

        return self._files.attempt("the checkpoint", write)

    def _check_finite(self) -> None:
        """Raises NonFiniteError, which names the last checkpoint; those have only been written after this check."""
        try:
            self.distiller.check_finite()
        except NonFiniteError as error:
            last = next(iter(checkpoint_paths(self.folder)), "none yet")
            raise NonFiniteError(f"{error}; last checkpoint before it: {last}") from error

    def _write_results(self, log: RunLog) -> None:
        """The rows of metrics.csv and the weights, where the last epoch has just been measured."""
        state = self.state
        log.write(state.rows)
        if not state.rows or state.epoch != len(state.rows) or state.step != state.epoch * len(self.data.train):
            return
        row = state.rows[-1]
        validation = {name: row[name] for name in ("natural_accuracy", "robust_accuracy") if row[name] is not None}
        facts = {"config": asdict(self.config), "epoch": state.epoch, "validation": validation}
        content = serialized(state.evaluated.state_dict(), **facts)
        self._files.write(self.folder / "last.safetensors", content)
        if state.best_epoch == state.epoch:
            self._files.write(self.folder / "best.safetensors", content)

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

    def _report_precision(self, moment: str) -> None:
        """On the run's first images, in the console and in the folder."""
        precision, maximizer = self.config.precision, self.distiller.maximizer
        if precision_report.is_fp32(precision):
            return
        x_natural, labels = next(self.data.train.epoch(0))
        part = slice(self.config.optim.micro_batch)
        report = precision_report.measure(maximizer, x_natural[part], labels[part], seed=self.config.seed)
        self._say(f"student in {precision.student}, teacher in {precision.teacher}, at the {moment}: {report}")
        path = self.folder / "precision.json"
        self._files.write(path, precision_json(path, moment, asdict(report)))

    def _report_skipped_images(self) -> None:
        """The image files that any process left out."""
        skipped = {path: reason for part in self.processes.gathered(self.data.skipped) for path, reason in part.items()}
        if skipped:
            path = self.folder / "skipped_images.txt"
            self._files.write(path, "".join(f"{reason}\n" for reason in skipped.values()).encode())
            self._say(f"image files that could not be decoded and were left out: {len(skipped)}, see {path}")

    def _metrics(self, validation: dict[str, float], progress: ImageProgress) -> dict[str, float | None]:
        error = self.distiller.read_teacher_error() or self.distiller.teacher_error
        return {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            "train_loss": self.state.mean_loss(),
            "natural_accuracy": validation.get("natural_accuracy"),
            "robust_accuracy": validation.get("robust_accuracy"),
            "images_per_s": progress.images_per_s,
            "seconds": progress.seconds,
            "data_wait": progress.waited_share,
            "skipped_updates": self.distiller.read_skipped() if self.config.on_nonfinite == "skip" else None,
            "teacher_logit_error": None if error is None else error.logit_error,
            "teacher_kl_error": None if error is None else error.kl_error,
            "teacher_top_class_differs": None if error is None else error.top_class_differs,
            "asking_interval": None if error is None else error.asking_interval,
        }
