"""One training step for people with their own loop: x_natural, labels -> the student, updated."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import BatchNorm, InnerConfig, Layout, Mode, OnNonfinite, PrecisionConfig, TeacherPolicy
from fastadaad.inner.caller import check_trainable
from fastadaad.inner.maximizer import InnerMaximizer, frozen
from fastadaad.inner.teacher_error import TeacherError, TeacherErrorMeter, adapted
from fastadaad.runtime.compile import one_graph
from fastadaad.runtime.distributed import Processes
from fastadaad.runtime.precision import tensor_cores
from fastadaad.runtime.sync_batch_norm import check_sync, synced_batch_norm
from fastadaad.training.awp import kept_buffers, perturbed_weights
from fastadaad.training.gradient_exchange import average_over_processes, running_statistics
from fastadaad.training.graph_step import captured_step
from fastadaad.training.micro_batches import Part, split_batch
from fastadaad.training.mixed_precision import check_awp, first_convolution_in_fp32, gradient_scaler, in_precision
from fastadaad.training.nonfinite import NonFiniteNotes, check_scale, find_nonfinite
from fastadaad.training.skipped_update import BeforeUpdate


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step leaves on the device; reading a value of it is a host synchronisation, so do it seldom."""

    loss: Tensor
    """Outer loss before the update, a scalar; with AWP, at the perturbed weights; in mode graph as x_adv."""
    x_adv: Tensor
    """[B, C, H, W]; in mode graph the next step overwrites it."""


# Steps from one look of an adaptive teacher policy at its error to the next.
ADAPT_EVERY = 20


def loss_and_logits(
    method: methods.Method,
    student: nn.Module,
    teacher: nn.Module | None,
    x_natural: Tensor,
    x_adv: Tensor,
    labels: Tensor | None,
    epoch: int,
    teacher_logits_natural: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The outer loss, a scalar with gradient, and without gradient the logits [B, N] that it took, by name."""
    batch = method.outer_batch(
        student, teacher, x_natural, x_adv, labels, epoch, teacher_logits_natural=teacher_logits_natural
    )
    loss = method.loss(batch, method.options)
    return loss, {name: logits.detach() for name, logits in batch.logits.items()}


class Distiller:
    """Inner maximisation, outer loss, backward and optimiser step, in this order.

    mode `compiled` puts the inner step and the outer loss under torch.compile (one graph each); `graph` replays the
    whole compiled step as one CUDA graph, or the inner loop alone where a graph cannot hold the rest, which warns;
    `auto` is compiled on CUDA and eager elsewhere; the attribute `mode` tells which it became. Student and teacher run
    on two streams in eager on CUDA, and in graph with compile_options={"disable": True}; a compiled step has one. In
    graph, an optimiser's setting that changes at each step, other than the learning rate, is captured anew each time.

    teacher_policy, precision and layout are InnerMaximizer's; where the policy's interval is adaptive, every
    ADAPT_EVERY-th step reads the policy's error from the device and adapts it.

    The student stays in its own mode if that is train mode (so that frozen batch-norm layers stay frozen) and is put
    into train mode otherwise; the teacher's modes and `requires_grad` are the same afterwards. With `awp_gamma` the
    update is that of the weights perturbed by AWP (Wu et al., 2020; gamma 0.005 there), from epoch `awp_begin` on; it
    costs a second outer loss.

    With `micro_batch` the networks see so many images at a time, and one update follows the mean of all; batch-norm in
    train mode takes its statistics from each micro-batch, everything else is as without. In bf16 and fp16 the student's
    training pass is under autocast, and in fp16 `scaler` leaves out an update with an infinite gradient.

    Each step notes on the device where NaN or inf is in x_natural, in the logits that the outer loss takes, in the loss
    or, save in fp16, in the gradients; check_finite() tells. With on_nonfinite `skip` a step whose loss or gradients
    are not finite leaves the student, its running statistics and the optimiser's state bit for bit as they were; what
    generators drew stays drawn, and fp16's scale is halved.

    processes: those that train one student, each on its share of every batch, rows r, r + n, ... for process r of n.
    The inner loop runs in each by itself; after the backward pass gradients, loss and running statistics become those
    of all images, so every process makes the same update. batch_norm `local`: statistics of each process's own images;
    `sync`: of all, as one process with the whole batch has them, and the outer loss then stays uncompiled.

    state_dict() has what a checkpoint needs beside student, optimiser and generators.

    The step takes what InnerMaximizer takes: networks in DistributedDataParallel, whose wrapper then sees the training
    passes alone, or in torch.compile, and callers under autocast, torch.no_grad or torch.inference_mode. Raises
    ValueError for a student that cannot be trained: one made in inference mode, one whose parameters the optimizer does
    not have, one that shares them with the teacher.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | None = None,
        optimizer: torch.optim.Optimizer,
        teacher_policy: TeacherPolicy | None = None,
        precision: PrecisionConfig | None = None,
        layout: Layout = "auto",
        mode: Mode = "auto",
        compile_options: dict | None = None,
        awp_gamma: float = 0.0,
        awp_begin: int = 0,
        micro_batch: int | None = None,
        on_nonfinite: OnNonfinite = "stop",
        processes: Processes | None = None,
        batch_norm: BatchNorm = "local",
    ) -> None:
        self.maximizer = InnerMaximizer(
            student,
            teacher,
            method=method,
            inner=inner,
            teacher_policy=teacher_policy,
            precision=precision,
            layout=layout,
            mode=mode,
            compile_options=compile_options,
            processes=processes,
        )
        check_trainable(student, teacher, optimizer)
        self.processes, self.batch_norm = processes or Processes(), batch_norm
        if self._syncs_batch_norm:
            check_sync(student)
        self.mode, self.method = self.maximizer.mode, self.maximizer.method
        self.precision = self.maximizer.precision
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.awp_gamma, self.awp_begin = awp_gamma, awp_begin
        self.micro_batch = micro_batch
        self.method.require_parts(micro_batch)
        check_awp(self.precision.student, awp_gamma)
        self._outer_student = in_precision(student, self.precision.student)
        device = next(student.parameters()).device
        self.scaler = gradient_scaler(self.precision.student, optimizer, device)
        self._outer_loss = self._compiled_outer_loss(compile_options or {})
        with torch.inference_mode(False):  # a caller's, outside of which its tensors could not be added to
            self._nonfinite = NonFiniteNotes(on_nonfinite, device)
            self._teacher_error = TeacherErrorMeter(self.maximizer.teacher_policy, device)
        self.teacher_error: TeacherError | None = None
        self._num_steps = 0
        self._captured = None
        if self.mode == "graph":
            sums = [self._teacher_error.sums, self._nonfinite.counts]
            self._captured = captured_step(
                self._train, self.maximizer, optimizer, micro_batch, sums, num_processes=self.processes.count
            )

    def _compiled_outer_loss(self, compile_options: dict) -> Callable:
        """loss_and_logits, as one graph where the mode has it compiled."""
        if self.mode == "eager" or self._syncs_batch_norm:  # which no graph of torch.compile can hold
            return loss_and_logits
        # An epoch is a number of the graph, which must not be compiled anew for each.
        return one_graph(loss_and_logits, **{"dynamic": None} | compile_options)

    @property
    def _syncs_batch_norm(self) -> bool:
        return self.processes.count > 1 and self.batch_norm == "sync"

    def step(
        self,
        x_natural: Tensor,
        labels: Tensor | None = None,
        *,
        epoch: int = 0,
        generator: torch.Generator | None = None,
    ) -> StepResult:
        """Train the student on one batch: x_natural fp32 [B, C, H, W] in [0, 1], labels [B] or None.

        Mutates the student's parameters, their `.grad` and the student's running statistics. Raises ValueError where
        the method needs labels and gets None, for an empty batch, and for tensors on different devices.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x_natural, labels = self.maximizer.admit(x_natural, labels)
            if not len(x_natural):
                raise ValueError("x_natural holds no images: leave a batch without any out")
            if x_natural.device != self._nonfinite.counts.device:
                raise ValueError(
                    f"x_natural is on {x_natural.device}, and the student was on {self._nonfinite.counts.device} when "
                    "the Distiller was made: move the networks first"
                )
            return self._step(x_natural, labels, epoch, generator)

    def _step(
        self, x_natural: Tensor, labels: Tensor | None, epoch: int, generator: torch.Generator | None
    ) -> StepResult:
        if not self.student.training:
            self.student.train()
        with (
            frozen(*[self.teacher] if self.teacher is not None else []),
            tensor_cores(self.precision, x_natural.device),
        ):
            if self._captured is None:
                loss, x_adv = self._train(x_natural, labels, epoch, generator, self.optimizer)
            else:
                decided = self.method.of_epoch(epoch, self.method.options), self._perturbation(epoch)
                loss, x_adv = self._captured(x_natural, labels, epoch, generator, decided)
        self._num_steps += 1
        if self.maximizer.teacher_policy.is_adaptive and self._num_steps % ADAPT_EVERY == 0:
            self.read_teacher_error()
        return StepResult(loss=loss, x_adv=x_adv)

    def _train(
        self,
        x_natural: Tensor,
        labels: Tensor | None,
        epoch: int,
        generator: torch.Generator | None,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[Tensor, Tensor]:
        """All of a step that happens on the device; the loss before the update, and x_adv."""
        before = None
        if self._nonfinite.on_nonfinite == "skip":
            before = BeforeUpdate(self.student, self.optimizer, [self._teacher_error.sums])
        parts = self._search(x_natural, labels, generator)
        loss_and_gradients = partial(self._loss_and_gradients, parts, epoch)
        gamma = self._perturbation(epoch)
        if gamma:
            with kept_buffers(self.student):
                _, found_first = loss_and_gradients()
            with perturbed_weights(self.student, gamma):
                loss, found = loss_and_gradients()
            # What perturbed weights make of it is no cause.
            found = torch.where(found_first.any(), found_first, found)
        else:
            loss, found = loss_and_gradients()
        self.scaler.step(optimizer)
        self.scaler.update()
        spoiled = self._nonfinite.add(found)
        if before is not None:
            before.restore(spoiled)
        torch.clear_autocast_cache()  # the same, before the update
        return loss, parts[0].inner.x_adv if len(parts) == 1 else torch.cat([part.inner.x_adv for part in parts])

    def _perturbation(self, epoch: int) -> float:
        """AWP's gamma in `epoch`."""
        return self.awp_gamma if epoch >= self.awp_begin else 0.0

    def _search(self, x_natural: Tensor, labels: Tensor | None, generator: torch.Generator | None) -> list[Part]:
        """Each micro-batch with its adversarial images, all of them found before the student changes."""
        batches = split_batch(x_natural, labels, self.micro_batch)
        parts = []
        for images, their_labels in batches:
            inner = self.maximizer.search(images, their_labels, generator=generator, replay=self._captured is None)
            # The next search overwrites a graph's outputs.
            parts.append(Part(images, their_labels, inner.clone() if len(batches) > 1 else inner))
        return parts

    def read_teacher_error(self) -> TeacherError | None:
        """How far the teacher policy was off since the last read, and adapt it; None: it is exact, or nothing is new.

        Waits for the device.
        """
        maximizer = self.maximizer
        if maximizer.teacher_policy.kind != "exact":
            self.processes.sum(self._teacher_error.sums)
        error = self._teacher_error.read(maximizer.asking_interval)
        if error is not None:
            self.teacher_error = error
            if maximizer.teacher_policy.is_adaptive:
                maximizer.asking_interval = adapted(error, maximizer.inner.num_steps)
        return error

    def check_finite(self) -> None:
        """Raises NonFiniteError (a ValueError) where a step so far met NaN or inf.

        With on_nonfinite `skip` only where nonfinite.MAX_SKIPPED_IN_A_ROW updates in a row were left out; in fp16 also
        where the scaler has left out so many that it will not recover. Waits for the device.
        """
        self._nonfinite.check(self.processes)
        check_scale(self.scaler)

    def read_skipped(self) -> int:
        """How many updates on_nonfinite `skip` left out so far. Waits for the device."""
        return self._nonfinite.read_skipped()

    def state_dict(self) -> dict[str, Any]:
        """What later steps depend on beside student, optimiser and generators: tensors, numbers, and dicts of them.

        Waits for the device.
        """
        return {
            "num_steps": self._num_steps,
            "asking_interval": self.maximizer.asking_interval,
            "teacher_error": None if self.teacher_error is None else asdict(self.teacher_error),
            "teacher_error_sums": self._teacher_error.sums.clone(),
            "nonfinite_counts": self._nonfinite.counts.clone(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict() gave."""
        self._num_steps = state["num_steps"]
        self.maximizer.asking_interval = state["asking_interval"]
        error = state["teacher_error"]
        self.teacher_error = None if error is None else TeacherError(**error)
        self._teacher_error.sums.copy_(state["teacher_error_sums"])
        self._nonfinite.counts.copy_(state["nonfinite_counts"])
        self.scaler.load_state_dict(state["scaler"])

    def _loss_and_gradients(self, parts: list[Part], epoch: int) -> tuple[Tensor, Tensor]:
        """The mean outer loss at the student's present weights, without gradient, and what find_nonfinite finds.

        Fills the weights' `.grad`, scaled in fp16. The sum over the parts is the mean over all images where batch-norm
        has no part in it.
        """
        torch.clear_autocast_cache()  # a caller's, which holds weights as they were before they were perturbed
        self.optimizer.zero_grad()  # without set_to_none, the default, which apex's optimisers do not know
        num_images = sum(len(part.x_natural) for part in parts)
        losses, logits = [], []
        with (
            first_convolution_in_fp32(self._outer_student),
            synced_batch_norm(self.student, self.processes) if self._syncs_batch_norm else nullcontext(),
        ):
            for part in parts:
                loss, logits_of_part = self._loss(part, epoch)
                loss = loss * (len(part.x_natural) / num_images)
                self.scaler.scale(loss).backward()
                losses.append(loss.detach())
                logits.append(logits_of_part)
        loss = torch.stack(losses).sum()
        if self.processes.count > 1:
            loss = self._exchange(loss, num_images)
        # From here on loss and gradients are complete: whether the update is spoiled is decided by what they are now.
        return loss, find_nonfinite([part.x_natural for part in parts], logits, loss, self._noted_gradients())

    def _exchange(self, loss: Tensor, num_images: int) -> Tensor:
        """Gradients and running statistics become those of all processes' images; the loss of all."""
        statistics = [] if self._syncs_batch_norm else running_statistics(self.student)
        return average_over_processes(self.processes, num_images, loss, [*self._gradients(), *statistics])

    def _noted_gradients(self) -> list[Tensor]:
        """Those of the update; none in fp16, where infinite ones are usual and the scaler's."""
        return [] if self.scaler.is_enabled() else self._gradients()

    def _gradients(self) -> list[Tensor]:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _loss(self, part: Part, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The outer loss of one part, with gradient, and without the logits [B, N] that it took."""
        inner = part.inner
        loss, logits = self._outer_loss(
            self.method,
            self._outer_student,
            self.maximizer.teacher_network(part.x_natural),
            part.x_natural,
            inner.x_adv,
            part.labels,
            epoch,
            inner.teacher_logits_natural,
        )
        if inner.teacher_logits_assumed is not None and "teacher_logits_adv" in logits:  # not at a weight of 0
            student_logits, teacher_logits = logits["student_logits_adv"], logits["teacher_logits_adv"]
            self._teacher_error.add(student_logits, teacher_logits, inner.teacher_logits_assumed)
        return loss, logits
