"""One training run: epochs of Distiller steps, learning rate, evaluation, checkpoints and logs."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console
from torch import Tensor, nn

from fastadaad.data.rank_agreement import dataset_digest
from fastadaad.evaluation import AttackResult, check_attacks
from fastadaad.inner.compile_choice import compile_notice
from fastadaad.models.weights_writing import serialized
from fastadaad.run_config import ModelConfig, RunConfig
from fastadaad.runtime.distributed import ProcessGroup, current_process_group
from fastadaad.runtime.host_memory import GarbageCollection
from fastadaad.runtime.locks import run_lock
from fastadaad.runtime.messages import LOG_FILE, LogFile, messages_on
from fastadaad.runtime.progress import Counts, ImageProgress, image_progress
from fastadaad.runtime.retrying_files import RetryingFiles
from fastadaad.runtime.signals import Interrupted, Interruption, interruption
from fastadaad.runtime.torch_settings import (
    deterministic_algorithms,
    measured_algorithms,
    own_random_states,
    restore_random_states,
)
from fastadaad.training.build import (
    build_model,
    build_student,
    build_teacher,
    distiller_of,
    mode_of_run,
    resolve_device,
    training_layout,
)
from fastadaad.training.changes import check_epochs, described, table
from fastadaad.training.checkpoint import (
    CheckpointError,
    CheckpointFacts,
    RunCheckpoint,
    checkpoint_paths,
    write_checkpoint,
)
from fastadaad.training.data import training_data
from fastadaad.training.epoch_lines import EpochLines
from fastadaad.training.evaluation import evaluate_on_test_set, evaluate_on_validation_split
from fastadaad.training.fingerprint import DATA, training_facts, versions
from fastadaad.training.flop_rate import FlopRate
from fastadaad.training.folders import check_still_own
from fastadaad.training.log import RunLog, epoch_row
from fastadaad.training.nonfinite import NonFiniteError
from fastadaad.training.preflight import check_before_training
from fastadaad.training.reports import TrainingResult, closing_lines, report_precision, report_skipped_images
from fastadaad.training.resume import (
    changed_config,
    check_same_run,
    check_same_run_on_all_ranks,
    find_checkpoint,
    load_state,
    saved_state,
)
from fastadaad.training.schedule import learning_rate
from fastadaad.training.state import initial_state
from fastadaad.training.step_profiler import StepProfiler

log = logging.getLogger(__name__)


class Trainer:
    """Trains the student of `config` and writes everything about the run to `folder`.

    Files: config.json, log.txt, metrics.csv, tensorboard/, checkpoints/, last.safetensors, best.safetensors of the
    epoch with the highest robust accuracy on the validation split, precision.json if a network is not in fp32, and
    skipped_images.txt if image files were skipped. A file that cannot be written does not end the training, and neither
    does output that cannot be printed; log.txt has the messages and warnings.

    In a process group each rank trains on its shard of each batch, and rank 0 writes.

    Args:
        config: Complete configuration of the run.
        folder: Folder of the run; created by train().
        console: Console for messages and the progress bar. Default: standard output.
        resume: Resume from the last usable checkpoint in `folder`, if there is one.
        allow: Settings that a resumed run changes, as `section.field=value`: those of changes.CHANGEABLE. It keeps them
            when it is resumed again, and lists them in changes.csv.
        process_group: Ranks that train together. Default: the group that this process has joined.
        profile_steps: Number of steps in a trace of torch.profiler, written to the folder with a snapshot of the memory
            on CUDA; 0: none. Rank 0 writes its own.

    Raises:
        CheckpointError: The checkpoint belongs to another run, or there are checkpoints and none can be used.
        ValueError: Data, teacher or settings do not fit, or the ranks were started with different settings.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        console: Console | None = None,
        *,
        resume: bool = False,
        allow: Sequence[str] = (),
        process_group: ProcessGroup | None = None,
        profile_steps: int = 0,
    ) -> None:
        self.config, self.folder = config, folder
        self.process_group = process_group or current_process_group()
        self._profile_steps = profile_steps if self.process_group.is_first else 0
        self._profiler: StepProfiler | None = None
        self.console = (console or Console()) if self.process_group.is_first else Console(quiet=True)
        self._log_file = LogFile(folder / LOG_FILE)
        with messages_on(self.console), self._log_file:
            checkpoint = find_checkpoint(folder, self.process_group) if resume else None
            self._look_into_folder()
            self.config, self._changes = changed_config(config, checkpoint, allow)
            check_attacks(self.config.evaluation.attacks, self.config.evaluation.threat_model)
            self._build()
            self._counts = Counts()
            self._random_states: dict[str, Any] | None = None
            if checkpoint is not None:
                self._resume(checkpoint)
            elif resume:
                log.info(f"{folder} has no checkpoint: the run starts from its beginning")

    def _look_into_folder(self) -> None:
        self._known_checkpoints = checkpoint_paths(self.folder)

    def _build(self) -> None:
        """Loads the data and builds networks, optimizer and training step."""
        config = self.config
        self.device = resolve_device(config.device)
        self._layout = training_layout(config, self.device)  # before reading the data: it checks the precision
        self.data = training_data(config, self.device, self.process_group)
        self.state = initial_state(config, build_student(config, self.data, self.device), self.device)
        teacher = None
        if config.method_row.needs_teacher and config.teacher is not None:
            teacher = build_teacher(config.teacher, self.data, self.device, config.method_row)
        with self.console.status("self-check of this machine"):
            mode = mode_of_run(config, self.data, self.state.student, teacher, self.device)
        # A measured layout may differ at the next run.
        layout = "contiguous" if config.deterministic and config.layout == "auto" else config.layout
        config = replace(config, mode=mode, layout=layout)
        self.distiller = distiller_of(
            config, self.state.student, teacher, self.state.optimizer, self.process_group, self.state.averaged
        )
        shows_rate = self.device.type == "cuda" and self.process_group.is_first
        self._flop_rate = FlopRate(self.distiller, self.device, self.process_group.size) if shows_rate else None
        self._must_compile = self.distiller.mode != "eager"
        self._files = RetryingFiles(enabled=self.process_group.is_first)
        self._garbage = GarbageCollection()
        self._run_facts = training_facts(self.config)
        # All training images, the extra ones included.
        self._run_facts[DATA] = dataset_digest(replace(self.data.dataset, train_images=self.data.train.images))
        check_same_run_on_all_ranks(self._run_facts, self.process_group)

    def _resume(self, checkpoint: RunCheckpoint) -> None:
        """Restores a checkpoint."""
        new = [change for change in self._changes if change["step"] is None]
        check_same_run(checkpoint, self._run_facts, self.process_group, [change["setting"] for change in new])
        try:
            self._counts, self._random_states = load_state(
                checkpoint.state, self.state, self.distiller, self.process_group, self.config.seed
            )
            place = "finished" if self._is_finished() else self._place()
        except Exception as error:  # an untrusted file may hold anything anywhere
            raise CheckpointError(
                f"{checkpoint.path} does not hold the state of this version ({' '.join(str(error).split())}): resume "
                "with the version that wrote it, or give another --run-folder"
            ) from error
        check_epochs(self.config, self.state.step, len(self.data.train))
        for change in new:
            change["step"] = self.state.step
            log.info(described(change))
        log.info(f"resuming from {checkpoint.path}: {place}")

    def train(self) -> TrainingResult:
        """Trains for all epochs, or until early stopping.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the current step is finished and saved.
            OSError: A file could not be written up to the end.
            ValueError: Another process trains or has trained in the folder, or another program's files are in it.
            NonFiniteError: A step met NaN or inf (see RunConfig.on_nonfinite).
        """
        config, state, data = self.config, self.state, self.data
        title = f"{config.recipe} {config.method} seed {config.seed}"
        total_images = config.optim.epochs * len(data.train) * config.data.batch_size
        with (
            messages_on(self.console),
            self._log_file,
            own_random_states(config.seed + self.process_group.rank),
            deterministic_algorithms(config.deterministic),
            measured_algorithms(),
            self._garbage,
            ExitStack() as stack,
        ):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)  # the closing line is about this run
            self._prepare()
            request = stack.enter_context(interruption())
            log.info(f"{title}: {self.distiller.arithmetic}, {self.distiller.mode} mode on {self.device}")
            if self.process_group.is_first:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(run_lock(self.folder))
                check_still_own(self.folder, self._known_checkpoints)
                stack.callback(self._look_into_folder)  # before the lock is released
            run_log = stack.enter_context(RunLog(self.folder, config, self._files, state.step))
            if self.process_group.is_first:
                self._log_file.begin()  # after config.json, by which a run is recognised
            progress = stack.enter_context(image_progress(self.console, title, total_images, self._counts))
            self._lines = EpochLines(config.optim.epochs, self._fraction_done)
            self._write_results(run_log)  # results that a crash may have lost
            if self._random_states is None:
                with progress.clock_stopped():
                    self._report_precision("start")
            if self._changes:
                self._save_checkpoint(progress)  # so that the next start has them too
                self._files.write(self.folder / "changes.csv", table(self._changes))
            if self._profile_steps:
                profiler = StepProfiler(self._profile_steps, self.folder, self.device, self._files)
                self._profiler = stack.enter_context(profiler)
            while not self._is_finished():
                if state.epoch == len(state.rows):
                    with self._garbage.held():
                        self._train_epoch(progress, request)
                self._finish_epoch(progress, request, run_log)
            result = self._result(progress)
            if self._stop_requested(request):  # too late for a step to see it
                raise self._interrupted("after the last epoch, and saved", request)
            return result

    def _prepare(self) -> None:
        """Checks a new run before its first step, or restores the random states of a resumed one."""
        if self._random_states is None:
            check_before_training(self.config, self.data, self.state.student, self.distiller.teacher)
        else:
            restore_random_states(self._random_states)

    def _result(self, progress: ImageProgress) -> TrainingResult:
        """Returns the result of the finished run, after its closing messages and the files that still wait."""
        result = TrainingResult(
            folder=self.folder,
            best_epoch=self.state.best_epoch,
            best_robust_accuracy=self.state.best_robust_accuracy,
            images_per_s=progress.images_per_s,
            seconds=progress.seconds,
        )
        self._report_precision("end")
        for line in closing_lines(self.distiller, progress, self.device):
            log.info(line)
        report_skipped_images(self.data, self.folder, self._files, self.process_group)
        self._files.require()
        return result

    def evaluate_best(self, title: str) -> list[AttackResult]:
        """Evaluates the student of the best epoch on the test set, after train().

        Args:
            title: Text beside the progress bar.
        """
        model = self.process_group.broadcast(self._best_student() if self.process_group.is_first else None)
        assert model is not None
        return evaluate_on_test_set(
            model.to(self.device), self.config, self.data, self.console, title, process_group=self.process_group
        )

    def _best_student(self) -> nn.Module:
        """Loads the student of the best epoch, on the CPU."""
        best = ModelConfig(name=self.config.student.name, checkpoint=str(self.folder / "best.safetensors"))
        return build_model(best, self.data, torch.device("cpu"))

    def _is_finished(self) -> bool:
        config, num_epochs = self.config, len(self.state.rows)
        patience = config.early_stop_epochs
        gave_up = patience is not None and num_epochs - self.state.best_epoch >= patience
        return num_epochs == config.optim.epochs or gave_up

    @property
    def _fraction_done(self) -> float:
        """Fraction of the run's steps that have been made."""
        return self.state.step / (self.config.optim.epochs * len(self.data.train))

    def _train_epoch(self, progress: ImageProgress, request: Interruption) -> None:
        """Trains for the rest of a pass over the training set."""
        config, state = self.config, self.state
        steps_per_epoch = len(self.data.train)
        batches = self.data.train.epoch(state.epoch, start_batch=state.step - state.epoch * steps_per_epoch)
        for x_natural, labels in progress.waited_for(batches):
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(self._fraction_done, config.optim, config.data.batch_size)
            if self._must_compile:
                log.info(compile_notice(state.student, self.distiller.teacher))
            before = time.perf_counter()
            # The first step compiles and does not count in images/s.
            with progress.clock_stopped("compiling") if self._must_compile else nullcontext():
                x_natural = x_natural.contiguous(memory_format=self._layout)
                result = self.distiller.step(x_natural, labels, epoch=state.epoch, generator=state.generator)
                progress.advance(len(labels) * self.process_group.size)
            if self._must_compile:
                self._must_compile = False
                log.info(f"compiled in {time.perf_counter() - before:.0f} s")
            state.add_loss(result.loss)
            state.step += 1
            self.process_group.progress()
            if self._profiler is not None:
                self._profiler.after_step()
            if state.step % config.log_every == 0:
                self._log(progress, x_natural, labels)
            self._after_step(progress, request)
        self.process_group.pause()
        state.epoch += 1
        state.average_after_epoch(config.optim)

    def _log(self, progress: ImageProgress, x_natural: Tensor, labels: Tensor) -> None:
        """Reads the loss from the device and shows it, with the rate on CUDA."""
        state = self.state
        with self.process_group.waiting():  # for the device, which may wait for another rank
            self._check_finite()
            notes = [f"epoch {state.epoch + 1}/{self.config.optim.epochs}", f"loss {state.mean_loss():.4f}"]
        if self.distiller.policy_share is not None:
            notes.append(f"policy {self.distiller.policy_share:.0%} of exact kl")
        if self._flop_rate is not None:
            with progress.clock_stopped():
                notes.append(self._flop_rate.describe(progress.images_per_s, x_natural, labels, state.epoch))
        progress.advance(0, "  ".join(notes))
        if self.console.is_terminal:
            return
        if line := self._lines.within_epoch(notes, progress.images_per_s, self._fraction_done):
            log.info(line)

    def _after_step(self, progress: ImageProgress, request: Interruption) -> None:
        """Collects garbage, stops and saves if it is time. With _log the only host synchronisations of the loop."""
        config, state = self.config, self.state
        num_steps = state.step - state.epoch * len(self.data.train)
        is_logged = state.step % config.log_every == 0
        self._garbage.after_step(is_due=is_logged)
        if (is_logged or self.process_group.size == 1) and self._stop_requested(request):
            self._save_and_stop(progress, request)
        # At the end of an epoch the checkpoint comes after its evaluation.
        if state.step % config.checkpoint_every == 0 and num_steps < len(self.data.train):
            self._save_checkpoint(progress)

    def _finish_epoch(self, progress: ImageProgress, request: Interruption, run_log: RunLog) -> None:
        """Evaluates the student, and writes the results of the epoch."""
        state = self.state
        with progress.clock_stopped():
            self._check_finite()  # before an evaluation that could only say that the student is broken
            validation = self._validation(progress, request)
            robust_accuracy = validation.get("robust_accuracy", -1.0)
            # Without a validation split the last epoch counts as the best.
            if self.data.validation is None or robust_accuracy > state.best_robust_accuracy:
                state.best_epoch, state.best_robust_accuracy = state.epoch, robust_accuracy
            state.rows.append(epoch_row(state, self.distiller, progress, validation))
            state.losses.zero_()
            self._save_checkpoint(progress)
            self._write_results(run_log)
            run_log.show(state.rows[-1])
            best = state.best_epoch, state.best_robust_accuracy
            log.info(self._lines.of_epoch(state.rows[-1], best, self._fraction_done))

    def _validation(self, progress: ImageProgress, request: Interruption) -> dict[str, float]:
        """Accuracies of the student on the validation split; empty if this epoch is not evaluated."""
        config, epoch = self.config, self.state.epoch
        if epoch != config.optim.epochs and epoch % config.evaluation.every_epochs:
            return {}

        def stop_if_requested(stage: str, num_images: int) -> None:
            if self.process_group.size == 1 and self._stop_requested(request):
                self._save_and_stop(progress, request)

        return evaluate_on_validation_split(
            self.state.evaluated, config, self.data, process_group=self.process_group, progress=stop_if_requested
        )

    def _stop_requested(self, request: Interruption) -> bool:
        """Returns True if any rank got a signal; all ranks call it at the same step."""
        numbers = self.process_group.all_gather(request.signal_number)
        request.signal_number = next((number for number in numbers if number is not None), None)
        return request.signal_number is not None

    def _save_and_stop(self, progress: ImageProgress, request: Interruption) -> NoReturn:
        """Saves a checkpoint and raises Interrupted."""
        is_saved = self._save_checkpoint(progress)
        saved = "and saved" if is_saved else "which could not be saved: the checkpoint before it counts"
        raise self._interrupted(f"in {self._place()}, {saved}", request)

    def _interrupted(self, place: str, request: Interruption) -> Interrupted:
        assert request.signal_number is not None
        return Interrupted(f"stopped {place}; start it again to resume (train: with --resume)", request.signal_number)

    def _place(self) -> str:
        """Epoch and step of the run, for messages."""
        num_epochs = self.config.optim.epochs
        return f"epoch {min(self.state.epoch + 1, num_epochs)} of {num_epochs}, step {self.state.step}"

    def _save_checkpoint(self, progress: ImageProgress) -> bool:
        """Saves a checkpoint; returns True if it was written."""
        self._check_finite()
        state = saved_state(self.state, self.distiller, progress.counts, self.process_group)
        facts = CheckpointFacts(
            run=self._run_facts,
            versions=versions(),
            processes=self.process_group.size,
            epoch=self.state.epoch,
            epochs=self.config.optim.epochs,
            finished=self._is_finished(),
            changes=self._changes,
        )

        def write() -> None:
            self._files.require()  # a run resumed from here does not write the best weights before it again
            write_checkpoint(self.folder, self.state.step, facts, state)

        return self._files.attempt("the checkpoint", write)

    def _check_finite(self) -> None:
        """Raises NonFiniteError, which names the last checkpoint: checkpoints are only written after this check."""
        try:
            self.distiller.check_finite()
        except NonFiniteError as error:
            last = next(iter(checkpoint_paths(self.folder)), "none yet")
            raise NonFiniteError(f"{error}; last checkpoint before it: {last}") from error

    def _write_results(self, run_log: RunLog) -> None:
        """Writes metrics.csv and, if the last epoch has just been evaluated, its weights."""
        state = self.state
        run_log.write(state.rows)
        if not state.rows or state.epoch != len(state.rows) or state.step != state.epoch * len(self.data.train):
            return
        row = state.rows[-1]
        validation = {name: row[name] for name in ("natural_accuracy", "robust_accuracy") if row[name] is not None}
        facts = {"config": asdict(self.config), "epoch": state.epoch, "validation": validation}
        content = serialized(state.evaluated.state_dict(), **facts)
        self._files.write(self.folder / "last.safetensors", content)
        if state.best_epoch == state.epoch:
            self._files.write(self.folder / "best.safetensors", content)

    def _report_precision(self, moment: str) -> None:
        report_precision(moment, self.config, self.data, self.distiller, self.folder, self._files)
