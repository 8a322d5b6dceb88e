"""A whole run: epochs of Distiller steps, the learning rate, when to evaluate and what to save."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_avg_fn

from fastadaad import methods, precision_report
from fastadaad.checkpoint import save_weights
from fastadaad.config import Mode, ModelConfig, RunConfig
from fastadaad.distiller import Distiller
from fastadaad.evaluation import AttackResult, check_attacks, evaluate, num_parts
from fastadaad.inner_maximization import resolve_mode
from fastadaad.models import load_model
from fastadaad.optimizers import make_optimizer
from fastadaad.progress import ImageProgress, image_progress
from fastadaad.run_log import RunLog, write_precision
from fastadaad.schedule import learning_rate
from fastadaad.self_check import ensure_checked
from fastadaad.training_data import TrainingData, training_data
from fastadaad.weights import checkpoint_path

# Share of the time of a training.
WORTH_A_THOUGHT = 0.05


@dataclass(kw_only=True)
class TrainingState:
    """All that changes while a run goes on."""

    student: nn.Module
    averaged: AveragedModel | None
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Draws the starts of the inner loop."""
    epoch: int = 0
    step: int = 0
    """Optimiser steps so far; the position in the data is step - epoch * steps per epoch."""
    best_epoch: int = 0
    best_robust_accuracy: float = -1.0

    @property
    def evaluated(self) -> nn.Module:
        """The network that is measured and saved: the averaged student as soon as there is one."""
        if self.averaged is None or self.averaged.n_averaged == 0:
            return self.student
        return self.averaged.module


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Where a run's files are and which epoch its best.safetensors comes from."""

    folder: Path
    best_epoch: int
    best_robust_accuracy: float
    images_per_s: float
    seconds: float


def resolve_device(name: str) -> torch.device:
    """`auto`: the GPU where there is one, else the CPU. Raises ValueError for a device this torch cannot use."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try device=cpu") from error


def checked_mode(mode: Mode, device: torch.device, say: Callable[[str], object]) -> Mode:
    """`mode` as far as the self-check of this machine, made here where it was not before, finds it right.

    `auto` is graph where captured steps are right, and else as resolve_mode() has it. `say` gets one line about what is
    switched off. Raises ValueError as resolve_mode().
    """
    resolved = resolve_mode(mode, device.type)
    result = ensure_checked(device, say)
    if mode == "auto" and result.status("captured") == "passed":
        resolved = "graph"
    return cast(Mode, result.usable_mode(resolved))


def build_model(config: ModelConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """The network of `config` for the classes and channels of `data`, on `device`."""
    statistics = dict(zip(("mean", "std"), data.statistics, strict=True)) if config.normalize else {}
    model = load_model(
        config.name,
        num_classes=data.num_classes,
        checkpoint=None if config.checkpoint is None else checkpoint_path(config.checkpoint),
        in_channels=data.num_channels,
        **statistics,
    )
    return model.to(device)


def build_student(config: RunConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """The student before its first update; its initial weights are a function of the seed."""
    # Only they come from torch's global generator, and only inside this block.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_model(config.student, data, device)


def build_teacher(config: ModelConfig, data: TrainingData, device: torch.device) -> nn.Module:
    """As build_model. Raises ValueError where no weights are given."""
    if config.checkpoint is None:
        raise ValueError(f"teacher {config.name} has no weights: set teacher.checkpoint=FILE")
    return build_model(config, data, device)


def distiller_of(
    config: RunConfig, student: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer
) -> Distiller:
    """The training step of `config`."""
    return Distiller(
        student,
        teacher,
        method=methods.get(config.method, **config.method_options),
        inner=config.inner,
        optimizer=optimizer,
        teacher_policy=None if teacher is None or config.teacher is None else config.teacher.policy,
        precision=config.precision,
        layout=config.layout,
        mode=config.mode,
        awp_gamma=config.optim.awp_gamma,
        awp_begin=config.optim.awp_begin,
        micro_batch=config.optim.micro_batch,
    )


class Trainer:
    """Trains the student of `config` and writes everything about the run to `folder`.

    Files: config.json, metrics.csv, tensorboard/, last.safetensors, best.safetensors of the epoch with the highest
    robust accuracy on the validation split, precision.json where a network is not in fp32, and skipped_images.txt where
    image files were left out.
    """

    def __init__(self, config: RunConfig, folder: Path, console: Console | None = None) -> None:
        check_attacks(config.evaluation.attacks, config.evaluation.threat_model)
        self.config, self.folder = config, folder
        self.console = console or Console()
        self.device = resolve_device(config.device)
        self.data = training_data(config, self.device)
        self.state = self._initial_state()
        method = methods.get(config.method, **config.method_options)
        teacher = None
        if method.needs_teacher and config.teacher is not None:
            teacher = build_teacher(config.teacher, self.data, self.device)
        with self.console.status("self-check of this machine"):
            mode = checked_mode(config.mode, self.device, self._say)
        self.distiller = distiller_of(replace(config, mode=mode), self.state.student, teacher, self.state.optimizer)
        self._must_compile = self.distiller.mode != "eager"

    def _initial_state(self) -> TrainingState:
        optim = self.config.optim
        student = build_student(self.config, self.data, self.device)
        averaged = None
        if optim.ema_decay or optim.swa_begin is not None:
            averaged = AveragedModel(
                student,
                multi_avg_fn=get_ema_multi_avg_fn(optim.ema_decay) if optim.ema_decay else None,
                # torch's multi-tensor form of it fails at batch-norm's integer counters.
                avg_fn=None if optim.ema_decay else get_swa_avg_fn(),
                use_buffers=True,
            )
        optimizer = make_optimizer(student, optim)
        generator = torch.Generator(self.device).manual_seed(self.config.seed)
        return TrainingState(student=student, averaged=averaged, optimizer=optimizer, generator=generator)

    def train(self) -> TrainingResult:
        """Run all epochs, or until early stopping."""
        config, state, data = self.config, self.state, self.data
        self._report_precision("start")
        total_images = config.optim.epochs * len(data.train) * config.data.batch_size
        title = f"{config.recipe} {config.method} seed {config.seed}"
        self.console.print(f"{title}: {self.distiller.mode} mode on {self.device}")
        with (
            RunLog(self.folder, config) as log,
            image_progress(self.console, title, total_images) as progress,
        ):
            while state.epoch < config.optim.epochs and not self._should_stop():
                train_loss = self._train_epoch(progress)
                state.epoch += 1
                self._average_epoch()
                with progress.clock_stopped():
                    validation = {}
                    if self._is_evaluation_epoch():
                        validation = evaluate_on_validation_split(state.evaluated, config, data)
                    self._save(validation)
                    log.write(self._metrics(train_loss, validation, progress))
        result = TrainingResult(
            folder=self.folder,
            best_epoch=state.best_epoch,
            best_robust_accuracy=state.best_robust_accuracy,
            images_per_s=progress.images_per_s,
            seconds=progress.seconds,
        )
        self._report_precision("end")
        self._report_teacher_policy()
        self._report_data(progress)
        return result

    def _train_epoch(self, progress: ImageProgress) -> float:
        """One pass over the training set; returns the mean outer loss."""
        config, state = self.config, self.state
        steps_per_epoch = len(self.data.train)
        loss_sum, num_steps = torch.zeros((), device=self.device), 0
        start_batch = state.step - state.epoch * steps_per_epoch
        for x_natural, labels in progress.waited_for(self.data.train.epoch(state.epoch, start_batch=start_batch)):
            share_done = state.step / (config.optim.epochs * steps_per_epoch)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(share_done, config.optim, config.data.batch_size)
            loss_sum += self._step(x_natural, labels, progress)
            if state.averaged is not None and config.optim.ema_decay:
                state.averaged.update_parameters(state.student)
            state.step += 1
            num_steps += 1
            if state.step % config.log_every == 0:  # the only host synchronisation of the loop
                loss = loss_sum.item() / num_steps
                progress.advance(0, f"epoch {state.epoch + 1}/{config.optim.epochs}  loss {loss:.4f}")
        return loss_sum.item() / num_steps

    def _step(self, x_natural: Tensor, labels: Tensor, progress: ImageProgress) -> Tensor:
        """The loss of one step of the distiller; the first, where it compiles, is no part of images/s."""
        epoch, generator = self.state.epoch, self.state.generator
        before = time.perf_counter()
        with progress.clock_stopped("compiling") if self._must_compile else nullcontext():
            result = self.distiller.step(x_natural, labels, epoch=epoch, generator=generator)
            progress.advance(len(labels))
        if self._must_compile:
            self._must_compile = False
            self._say(f"compiled in {time.perf_counter() - before:.0f} s")
        return result.loss

    def _average_epoch(self) -> None:
        """SWA's part at the end of an epoch."""
        optim, state = self.config.optim, self.state
        if optim.swa_begin is not None and state.epoch > optim.swa_begin * optim.epochs:
            assert state.averaged is not None
            state.averaged.update_parameters(state.student)

    def _is_evaluation_epoch(self) -> bool:
        every = self.config.evaluation.every_epochs
        last = self.state.epoch == self.config.optim.epochs
        return last or self.state.epoch % every == 0

    def _save(self, validation: dict[str, float]) -> None:
        state = self.state
        facts = {"config": asdict(self.config), "epoch": state.epoch, "validation": validation}
        save_weights(self.folder / "last.safetensors", state.evaluated, **facts)
        robust_accuracy = validation.get("robust_accuracy", -1.0)
        # Without a validation split the last epoch is the best that is known.
        if self.data.validation is None or robust_accuracy > state.best_robust_accuracy:
            state.best_epoch, state.best_robust_accuracy = state.epoch, robust_accuracy
            save_weights(self.folder / "best.safetensors", state.evaluated, **facts)

    def _should_stop(self) -> bool:
        patience = self.config.early_stop_epochs
        return patience is not None and self.state.epoch - self.state.best_epoch >= patience

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
        write_precision(self.folder, moment, asdict(report))

    def _report_teacher_policy(self) -> None:
        policy, error = self.distiller.maximizer.teacher_policy, self.distiller.teacher_error
        if policy.kind == "exact":
            return
        known = "its error is not known: the outer loss does not ask the teacher at x_adv"
        if error is not None:
            known = f"kl off by {error.kl_error:.1%}, another top class in {error.top_class_differs:.1%} of the images"
        self._say(f"teacher policy {policy}: asked every {self.distiller.maximizer.asking_interval} steps, {known}")

    def _report_data(self, progress: ImageProgress) -> None:
        """What waiting for data cost, where it is worth a thought, and the files that were left out."""
        if progress.waited_share > WORTH_A_THOUGHT:
            self._say(
                f"{progress.waited_share:.0%} of the time was spent waiting for data: raise data.num_workers, or run "
                "fastadaad pack once and train from what it writes"
            )
        skipped = self.data.skipped
        if skipped:
            path = self.folder / "skipped_images.txt"
            path.write_text("".join(f"{reason}\n" for reason in skipped.values()))
            self._say(f"image files that could not be decoded and were left out: {len(skipped)}, see {path}")

    def _metrics(self, train_loss: float, validation: dict, progress: ImageProgress) -> dict[str, float | None]:
        error = self.distiller.read_teacher_error() or self.distiller.teacher_error
        return {
            "epoch": self.state.epoch,
            "step": self.state.step,
            "learning_rate": self.state.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "natural_accuracy": validation.get("natural_accuracy"),
            "robust_accuracy": validation.get("robust_accuracy"),
            "images_per_s": progress.images_per_s,
            "seconds": progress.seconds,
            "data_wait": progress.waited_share,
            "teacher_logit_error": None if error is None else error.logit_error,
            "teacher_kl_error": None if error is None else error.kl_error,
            "teacher_top_class_differs": None if error is None else error.top_class_differs,
            "asking_interval": None if error is None else error.asking_interval,
        }


def evaluate_on_validation_split(model: nn.Module, config: RunConfig, data: TrainingData) -> dict[str, float]:
    """natural_accuracy and robust_accuracy of `model`, as metrics.csv has them; empty without a validation split."""
    if data.validation is None:
        return {}
    evaluation = config.evaluation
    natural, robust = evaluate(
        model,
        partial(data.validation.epoch, 0),
        ("natural", evaluation.validation_attack),
        threat_model=evaluation.threat_model,
        seed=config.seed,
    )
    return {"natural_accuracy": natural.accuracy, "robust_accuracy": robust.accuracy}


def evaluate_on_test_set(
    model: nn.Module,
    config: RunConfig,
    data: TrainingData,
    console: Console,
    title: str,
    *,
    state: Path | None = None,
) -> list[AttackResult]:
    """The attacks of `config.evaluation` on the test images of `data`, with live progress; `state` as in evaluate."""
    evaluation = config.evaluation
    with image_progress(console, title, num_parts(evaluation.attacks) * data.test.num_images) as progress:
        results = evaluate(
            model,
            partial(data.test.epoch, 0),
            evaluation.attacks,
            threat_model=evaluation.threat_model,
            restarts=evaluation.restarts,
            seed=config.seed,
            progress=lambda part, num_images: progress.advance(num_images, part),
            state=state,
        )
    skipped = [*data.dataset.skipped.values(), *data.test.skipped.values()]
    notes = [
        f"image files of the data set that are left out: {len(skipped)}, the first: {first}" for first in skipped[:1]
    ]
    return [replace(result, notes=(*result.notes, *notes)) for result in results]
