"""Training step for a loop of one's own: x_natural, labels -> the student, updated."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import (
    AwpForm,
    BatchNorm,
    InnerConfig,
    Layout,
    Mode,
    OnNonfinite,
    PrecisionConfig,
    TeacherPolicy,
    check_grad_clip,
    require_choice,
    require_integer,
)
from fastadaad.inner.caller import check_networks, check_trainable, device_of
from fastadaad.inner.folded_cache import has_hooks
from fastadaad.inner.frozen import frozen
from fastadaad.inner.maximizer import InnerMaximizer, InnerResult
from fastadaad.inner.policy_probe import PolicyProbe
from fastadaad.inner.spot_check import SpotCheck
from fastadaad.inner.teacher_error import TeacherError, TeacherErrorMeter, adapted
from fastadaad.methods.outer_batch import OuterBatch, listed_passes, outer_loss
from fastadaad.runtime.batch_norm import running_statistics
from fastadaad.runtime.compile import one_graph
from fastadaad.runtime.distributed import ProcessGroup
from fastadaad.runtime.precision import description, tensor_cores
from fastadaad.runtime.sync_batch_norm import check_sync, synced_batch_norm
from fastadaad.training.averaging import AveragedWeights
from fastadaad.training.awp import kept_buffers, perturbed_weights
from fastadaad.training.gradient_clip import clip_gradients
from fastadaad.training.gradient_exchange import average_over_ranks
from fastadaad.training.graph_step import captured_step
from fastadaad.training.mixed_precision import (
    check_awp,
    first_convolution_in_fp32,
    gradient_scaler,
    in_precision,
    scaler_state,
)
from fastadaad.training.nonfinite import NonFiniteCounters, UpdateGuard, check_scale, find_nonfinite
from fastadaad.training.self_check_result import remembered_mode

# Steps between two adaptations of an adaptive teacher policy to its error.
ADAPT_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Result of a step, on the device. Reading a value synchronises with the host, so do it seldom."""

    loss: Tensor
    """Outer loss before the update, a scalar. With AWP: at the perturbed weights."""
    x_adv: Tensor
    """Adversarial images [B, C, H, W]."""
    precision: PrecisionConfig
    """Precision in which the step ran, without `auto`."""


def _runs_own_code(student: nn.Module, teacher: nn.Module | None, optimizer: torch.optim.Optimizer) -> bool:
    """Returns True if hooks of the user run in each step, which a replay of a CUDA graph would leave out."""
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    return any(hooks) or any(has_hooks(network) for network in (student, teacher) if network is not None)


class MicroBatch(NamedTuple):
    """Images of a batch that go through the networks together, and the result of their search."""

    x_natural: Tensor
    labels: Tensor | None
    inner: InnerResult


def split_batch(
    x_natural: Tensor, labels: Tensor | None, micro_batch: int | None
) -> list[tuple[Tensor, Tensor | None]]:
    """Splits x_natural [B, C, H, W] and labels [B] into micro-batches; the last one may be smaller."""
    if micro_batch is None or len(x_natural) <= micro_batch:
        return [(x_natural, labels)]
    images = x_natural.split(micro_batch)
    return list(zip(images, [None] * len(images) if labels is None else labels.split(micro_batch), strict=True))


def loss_and_logits(
    loss: Callable[[OuterBatch, methods.MethodOptions], Tensor], options: methods.MethodOptions, batch: OuterBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outer loss, a scalar with gradient, and the logits [B, N] that it used, by name and without gradient."""
    value = outer_loss(loss, batch, options)
    return value, {name: logits.detach() for name, logits in batch.logits.items()}


class Distiller:
    """Training step: inner maximisation, outer loss, backward pass and optimiser update.

    The student keeps its mode if that is train mode, so that frozen batch-norm layers stay frozen; otherwise it is put
    into train mode. The teacher's mode and `requires_grad` are restored after each step. The networks may be wrapped by
    DistributedDataParallel, whose wrapper then sees the training passes alone, or by torch.compile; the caller may be
    under autocast, torch.no_grad or torch.inference_mode.

    On tensor cores the student's own convolutions are channels-last: for its training pass call
    `student.to(memory_format=torch.channels_last)` before the optimizer is made, and give x_natural in that layout too.
    Nothing is converted here; a Trainer does both.

    Each step records on the device which of x_natural, logits, loss and gradients (gradients: not in fp16) are
    non-finite; check_finite() raises if any were. state_dict() holds what a checkpoint needs besides student, optimizer
    and generators.

    Args:
        student: Network to train, which returns logits [B, N].
        teacher: Teacher with the same classes, or None for a method without one.
        method: Row of the table of methods, by name or as a Method.
        inner: Threat model, step size and number of steps; an InnerConfig or a dict of settings.
        optimizer: Optimiser of the student's parameters.
        teacher_policy: Interval of the teacher queries, such as `"refreshed(every=5)"`. Default: exact. An adaptive
            policy reads its error from the device in every ADAPT_EVERY-th step. Any policy but exact is probed at
            intervals: if it reaches less than 0.8 of the exact search's kl, it warns and queries more often.
        precision: Arithmetic of each network, a PrecisionConfig or one string for both. Default: auto, which is bf16 on
            a CUDA device with tensor cores, else fp32; the attribute `precision` holds the precision in use. In bf16
            and fp16 the student's training pass is under autocast; in fp16 `scaler` skips an update with an infinite
            gradient.
        layout: Memory layout of the folded copies' convolutions; `auto` measures once per machine and network.
        fold: Run the search on folded copies of the networks (docs/folding.md).
        mode: `eager`; `compiled`: the inner step and the outer loss are one graph of torch.compile each; `graph`: the
            whole compiled step is replayed as one CUDA graph, or the inner loop alone if a graph cannot hold the rest,
            which warns; `auto`: on CUDA graph if this machine passed the self-check of captured steps (`fastadaad
            doctor --verify`) and neither networks nor optimizer have hooks, otherwise compiled; on other devices, and
            with student_eval=False, eager. The attribute `mode` holds the mode in use. Eager mode on
            CUDA, and graph with compile_options={"disable": True}, run student and teacher on two streams. Graph
            captures again whenever a setting of the optimiser other than the learning rate changes.
        compile_options: Keyword arguments of torch.compile.
        awp_gamma: AWP (Wu et al., 2020; gamma 0.005 there): the update follows the gradient at weights perturbed by
            this fraction of their norm, which costs a second outer loss. 0: off.
        awp_begin: First epoch with AWP.
        awp_form: `sam` or `asam` move all weights together by awp_gamma, instead of each by its fraction; see
            training/awp.py. Default: awp.
        micro_batch: Number of images that go through the networks at a time; one update follows the mean of all.
            Batch-norm in train mode then takes its statistics from each micro-batch. Default: the batch.
        grad_clip: Largest norm of the gradient of all the optimizer's parameters together; a longer one is shortened
            before the update. Default: no clipping.
        on_nonfinite: `stop`: check_finite() raises. `skip`: a step with a non-finite loss or gradient leaves student,
            running statistics and optimiser state bitwise unchanged; random numbers stay drawn, and fp16's scale is
            halved.
        process_group: Ranks that train one student, each on its shard of every batch: rank r of n has rows r, r + n,
            ... After the backward pass gradients, loss and running statistics are averaged over all images, so every
            rank makes the same update.
        batch_norm: `local`: batch statistics of each rank's own images; `sync`: of all ranks' images, as a single
            process with the whole batch has them. The outer loss then stays uncompiled.
        averaged: Exponential moving average to which each step adds the student, in mode `graph` within the graph.

    Raises:
        ValueError: The student cannot be trained: it was made in inference mode, the optimizer does not have its
            parameters or needs a closure, or it shares them with the teacher. Or settings contradict each other.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | None = None,
        *,
        method: str | methods.Method = "adaad",
        inner: InnerConfig | dict[str, Any] | None = None,
        optimizer: torch.optim.Optimizer,
        teacher_policy: TeacherPolicy | str | None = None,
        precision: PrecisionConfig | str | None = None,
        layout: Layout = "auto",
        fold: bool = True,
        mode: Mode = "auto",
        compile_options: dict[str, Any] | None = None,
        awp_gamma: float = 0.0,
        awp_begin: int = 0,
        awp_form: AwpForm | None = None,
        micro_batch: int | None = None,
        grad_clip: float | None = None,
        on_nonfinite: OnNonfinite = "stop",
        process_group: ProcessGroup | None = None,
        batch_norm: BatchNorm = "local",
        averaged: AveragedWeights | None = None,
    ) -> None:
        check_networks(student, teacher)
        check_trainable(student, teacher, optimizer)
        self._is_auto = mode == "auto"
        is_capturable = InnerConfig.parse(inner).student_eval and not _runs_own_code(student, teacher, optimizer)
        if self._is_auto and is_capturable:
            mode = remembered_mode(mode, device_of(student))
        self.maximizer = InnerMaximizer(
            student,
            teacher,
            method=method,
            inner=inner,
            teacher_policy=teacher_policy,
            precision=precision,
            layout=layout,
            fold=fold,
            mode=mode,
            compile_options=compile_options,
            process_group=process_group,
        )
        require_choice("batch_norm", batch_norm, BatchNorm)
        require_choice("on_nonfinite", on_nonfinite, OnNonfinite)
        if micro_batch is not None:
            require_integer("micro_batch", micro_batch, 1)
        check_grad_clip(grad_clip)
        self.maximizer.method.check_micro_batch(micro_batch)
        self.process_group, self.batch_norm = process_group or ProcessGroup(), batch_norm
        self.averaged = averaged
        if self._syncs_batch_norm:
            check_sync(student)
        self.mode, self.method = self.maximizer.mode, self.maximizer.method
        self.precision = self.maximizer.precision
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.awp_gamma, self.awp_begin = awp_gamma, awp_begin
        self.micro_batch, self.grad_clip, self.on_nonfinite = micro_batch, grad_clip, on_nonfinite
        require_choice("awp_form", awp_form or "awp", AwpForm)
        self.awp_form: AwpForm = awp_form or "awp"
        check_awp(self.precision.student, awp_gamma, awp_begin)
        self._outer_student = in_precision(student, self.precision.student)
        device = next(student.parameters()).device
        self.scaler = gradient_scaler(self.precision.student, optimizer, device)
        self._outer_loss = self._compiled_outer_loss(compile_options or {})
        with torch.inference_mode(False):  # tensors made in the caller's inference mode could not be added to
            self._nonfinite = NonFiniteCounters(on_nonfinite, device)
            self._teacher_error = TeacherErrorMeter(self.maximizer.teacher_policy, device)
            self._spot_check = SpotCheck(self.precision, device)
        self._policy_probe = PolicyProbe(self.maximizer, self.process_group)
        self.teacher_error: TeacherError | None = None
        self._num_steps = 0
        self._captured = None
        if self.mode == "graph":
            sums = [self._teacher_error.sums, self._nonfinite.counts, *scaler_state(self.scaler, device)]
            sums += [] if averaged is None else averaged.tensors
            self._captured = captured_step(
                self._update,
                self.maximizer,
                optimizer,
                sums,
                skips_updates=self.scaler.is_enabled(),
                num_ranks=self.process_group.size,
            )

    @property
    def arithmetic(self) -> str:
        """Precision in use, in one phrase."""
        return description(self.precision, self._nonfinite.counts.device, has_teacher=self.method.needs_teacher)

    def __repr__(self) -> str:
        return f"Distiller({self.maximizer!r}, optimizer={type(self.optimizer).__name__})"

    def _compiled_outer_loss(self, compile_options: dict[str, Any]) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
        """Returns loss_and_logits, as one graph in the compiled modes."""
        if self.mode == "eager" or self._syncs_batch_norm:  # no graph of torch.compile can hold the exchange
            return loss_and_logits
        # The epoch is a number in the graph, which must not be compiled again for each epoch.
        name = f"the outer loss of {type(self.student).__name__}"
        options = {"dynamic": None} | compile_options
        return one_graph(loss_and_logits, name=name, required=self.mode == "graph", **options)

    @property
    def _syncs_batch_norm(self) -> bool:
        return self.process_group.size > 1 and self.batch_norm == "sync"

    def step(
        self,
        x_natural: Tensor,
        labels: Tensor | None = None,
        *,
        epoch: int = 0,
        generator: torch.Generator | None = None,
    ) -> StepResult:
        """Trains the student on one batch.

        Changes the student's parameters, their `.grad`, and the student's running statistics.

        Args:
            x_natural: Natural images, fp32 [B, C, H, W] in [0, 1].
            labels: Class numbers, int64 [B], or None for a method without labels. The methods pgd-at, trades, ard and
                akd take label distributions too, floats [B, N]: their losses are linear in the one-hot label.
            epoch: Current epoch, for methods that depend on it.
            generator: Random numbers of the search's start; default: torch's generator of the device.

        Raises:
            ValueError: Labels are needed and missing, the batch is empty, or tensors are on different devices.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x_natural, labels = self.maximizer.admit(x_natural, labels)
            self._check_batch(x_natural)
            if not self.student.training:
                self.student.train()
            with frozen(*self._teachers), tensor_cores(self.precision, x_natural.device):
                if self._policy_probe.is_due(self._num_steps):
                    with kept_buffers(self.student):  # a student in train mode changes its statistics
                        self._policy_probe.run(x_natural, labels)
                if self._captured is None or self._has_new_hooks():
                    loss, x_adv = self._update(x_natural, labels, epoch, generator, self.optimizer)
                else:
                    key = self.method.epoch_key(epoch), self._gamma(epoch), self._has_average
                    # The next replay overwrites the graph's own tensors.
                    loss, x_adv = (x.clone() for x in self._captured(x_natural, labels, epoch, generator, key))
            if self._spot_check.is_due(self._num_steps) and self.maximizer.can_be_spot_checked:
                self._spot_check.add(self.maximizer, x_natural, labels, x_adv)
            self._num_steps += 1
            if self.averaged is not None:
                self.averaged.num_averaged += 1
            if self.maximizer.teacher_policy.is_adaptive and self._num_steps % ADAPT_EVERY == 0:
                self.read_teacher_error()
            return StepResult(loss=loss, x_adv=x_adv, precision=self.precision)

    @property
    def _has_average(self) -> bool:
        """False as long as the running average has no state to which another one could be added."""
        return self.averaged is not None and self.averaged.num_averaged > 0

    def _has_new_hooks(self) -> bool:
        """Returns True if mode `auto` chose a graph, and hooks have come since, which a replay would leave out."""
        return self._is_auto and _runs_own_code(self.student, self.teacher, self.optimizer)

    @property
    def _teachers(self) -> list[nn.Module]:
        return [] if self.teacher is None else [self.teacher]

    def _check_batch(self, x_natural: Tensor) -> None:
        if not len(x_natural):
            raise ValueError("x_natural holds no images: leave out an empty batch")
        if x_natural.device != self._nonfinite.counts.device:
            raise ValueError(
                f"x_natural is on {x_natural.device}, and the student was on {self._nonfinite.counts.device} when "
                "the Distiller was made: move the networks first"
            )

    def _update(
        self,
        x_natural: Tensor,
        labels: Tensor | None,
        epoch: int,
        generator: torch.Generator | None,
        optimizer: torch.optim.Optimizer,
    ) -> tuple[Tensor, Tensor]:
        """Runs the part of a step that happens on the device; returns the loss before the update, and x_adv."""
        guard = None
        if self.on_nonfinite == "skip":
            guard = UpdateGuard(self.student, self.optimizer, [self._teacher_error.sums])
        batches = []  # all searches come before the student changes
        for images, their_labels in split_batch(x_natural, labels, self.micro_batch):
            inner = self.maximizer.search(images, their_labels, generator=generator, replay=self._captured is None)
            # In mode graph the next search overwrites the result.
            is_last = len(images) == len(x_natural)
            batches.append(MicroBatch(images, their_labels, inner if is_last else inner.clone()))
        loss, found = self._loss_and_gradients_with_awp(batches, epoch)
        if self.grad_clip is not None:
            found |= clip_gradients(optimizer, self.scaler, self.grad_clip)
        self.scaler.step(optimizer)
        self.scaler.update()
        spoiled = self._nonfinite.add(found)
        if guard is not None:
            guard.revert_if(spoiled)
        if self.averaged is not None:
            self.averaged.accumulate(self.student)
        torch.clear_autocast_cache()  # it holds the weights before the update
        x_adv = [batch.inner.x_adv for batch in batches]
        return loss, x_adv[0] if len(x_adv) == 1 else torch.cat(x_adv)

    def _gamma(self, epoch: int) -> float:
        """AWP's gamma in `epoch`."""
        return self.awp_gamma if epoch >= self.awp_begin else 0.0

    def _loss_and_gradients_with_awp(self, batches: list[MicroBatch], epoch: int) -> tuple[Tensor, Tensor]:
        """Computes loss and gradients as _loss_and_gradients does, at weights perturbed by AWP if it is on."""
        gamma = self._gamma(epoch)
        if not gamma:
            return self._loss_and_gradients(batches, epoch)
        with kept_buffers(self.student):
            _, found_first = self._loss_and_gradients(batches, epoch)
        with perturbed_weights(self.student, gamma, self.awp_form):
            loss, found = self._loss_and_gradients(batches, epoch)
        # Non-finite values at the perturbed weights are a consequence, not a cause.
        return loss, torch.where(found_first.any(), found_first, found)

    def _loss_and_gradients(self, batches: list[MicroBatch], epoch: int) -> tuple[Tensor, Tensor]:
        """Computes the mean outer loss at the student's present weights, and fills `.grad` (scaled in fp16).

        Without batch-norm in train mode the sum over the micro-batches is the mean over all images.

        Returns:
            The loss, a scalar without gradient, and the result of find_nonfinite.
        """
        torch.clear_autocast_cache()  # the caller's cache may hold the weights before their perturbation
        self.optimizer.zero_grad()
        num_images = sum(len(batch.x_natural) for batch in batches)
        losses, logits = [], []
        with (
            first_convolution_in_fp32(self._outer_student),
            synced_batch_norm(self.student, self.process_group) if self._syncs_batch_norm else nullcontext(),
        ):
            for batch in batches:
                loss, batch_logits = self._loss(batch, epoch)
                loss = loss * (len(batch.x_natural) / num_images)
                self.scaler.scale(loss).backward()
                losses.append(loss.detach())
                logits.append(batch_logits)
        loss = torch.stack(losses).sum()
        if self.process_group.size > 1:
            loss = self._exchange(loss, num_images)
        # Loss and gradients are complete now, so they decide whether the update is spoiled.
        return loss, find_nonfinite([batch.x_natural for batch in batches], logits, loss, self._checked_gradients())

    def _exchange(self, loss: Tensor, num_images: int) -> Tensor:
        """Averages gradients, running statistics and loss over the images of all ranks; returns the loss."""
        statistics = [] if self._syncs_batch_norm else running_statistics(self.student)
        return average_over_ranks(self.process_group, num_images, loss, [*self._gradients(), *statistics])

    def _checked_gradients(self) -> list[Tensor]:
        """Gradients to check; none in fp16, in which infinite gradients are usual and handled by the scaler."""
        return [] if self.scaler.is_enabled() else self._gradients()

    def _gradients(self) -> list[Tensor]:
        parameters = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return [parameter.grad for parameter in parameters if parameter.grad is not None]

    def _loss(self, batch: MicroBatch, epoch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Outer loss of one micro-batch, with gradient, and the logits [B, N] that it used, without gradient."""
        inner = batch.inner
        known = inner.teacher_logits_natural
        outer = OuterBatch(
            student=self._outer_student,
            teacher=self.maximizer.teacher_network(batch.x_natural),
            x_natural=batch.x_natural,
            x_adv=inner.x_adv,
            labels=batch.labels,
            epoch=epoch,
            logits={} if known is None else {"teacher_logits_natural": known},
            passes=listed_passes(self.method.options, self._outer_student, epoch),
        )
        loss, logits = self._outer_loss(self.method.loss, self.method.options, outer)
        if inner.teacher_logits_assumed is not None and "teacher_logits_adv" in logits:  # absent at a weight of 0
            student_logits, teacher_logits = logits["student_logits_adv"], logits["teacher_logits_adv"]
            self._teacher_error.add(student_logits, teacher_logits, inner.teacher_logits_assumed)
        return loss, logits

    def read_teacher_error(self) -> TeacherError | None:
        """Reads the teacher policy's error since the last read, and adapts an adaptive policy to it.

        Waits for the device.

        Returns:
            The error; None if the policy is exact, or no step came since the last read.
        """
        maximizer = self.maximizer
        if maximizer.teacher_policy.kind != "exact":
            self.process_group.all_reduce(self._teacher_error.sums)
        error = self._teacher_error.read(maximizer.query_interval)
        if error is not None:
            self.teacher_error = error
            if maximizer.teacher_policy.is_adaptive:
                maximizer.query_interval = adapted(error, maximizer.inner.num_steps)
        return error

    @property
    def policy_share(self) -> float | None:
        """Share of the exact search's kl that the teacher policy reached in its last probe; None: there was none."""
        return self._policy_probe.share

    def read_gradient_agreement(self) -> float | None:
        """Reads the fraction of pixel gradients with the networks' own sign, in the spot checks since the last read.

        Waits for the device, and warns if the fraction is too small for rounding; None: there was no check.
        """
        return self._spot_check.read()

    def check_finite(self) -> None:
        """Checks the steps so far for NaN and inf. Waits for the device.

        Raises:
            NonFiniteError: A step met NaN or inf. With on_nonfinite `skip`: nonfinite.MAX_SKIPPED_IN_A_ROW updates in a
                row were skipped. In fp16 also if the scaler has skipped too many updates to recover.
        """
        self._nonfinite.check(self.process_group)
        check_scale(self.scaler)

    def read_skipped(self) -> int:
        """Number of updates that on_nonfinite `skip` has skipped so far. Waits for the device."""
        return self._nonfinite.read_skipped()

    def state_dict(self) -> dict[str, Any]:
        """Returns what later steps depend on besides student, optimizer and generators: tensors, numbers and dicts.

        Waits for the device.
        """
        return {
            "num_steps": self._num_steps,
            "query_interval": self.maximizer.query_interval,
            "teacher_error": None if self.teacher_error is None else asdict(self.teacher_error),
            "teacher_error_sums": self._teacher_error.sums.clone(),
            "nonfinite_counts": self._nonfinite.counts.clone(),
            "spot_check_sums": self._spot_check.sums.clone(),
            "policy_share": self.policy_share,
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores a state_dict()."""
        self._num_steps = state["num_steps"]
        self.maximizer.query_interval = state["query_interval"]
        error = state["teacher_error"]
        self.teacher_error = None if error is None else TeacherError(**error)
        self._teacher_error.sums.copy_(state["teacher_error_sums"])
        self._nonfinite.counts.copy_(state["nonfinite_counts"])
        self._spot_check.sums.copy_(state["spot_check_sums"])
        self._policy_probe.share = state.get("policy_share")  # absent before there was a probe
        self.scaler.load_state_dict(state["scaler"])
