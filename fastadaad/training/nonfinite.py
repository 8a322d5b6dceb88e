"""NaN and inf in a training step: detected on the device without a host sync, and reported when the host reads them.

Non-finite values propagate to the loss, so the loss and the gradients decide whether an update is spoiled. Exception:
the inner loop takes sign(NaN) = 0, which hides them. But a method whose x_adv depends on the teacher evaluates the
teacher at x_adv in its loss too, and every method evaluates the student there. Only a value that overflows on the way
to x_adv, and not at x_adv, stays unseen; it costs some pixels one step.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from fastadaad.config import OnNonfinite
from fastadaad.runtime.distributed import ProcessGroup

# In the order in which a step computes them.
TENSORS = ("x_natural", "student_logits", "teacher_logits", "loss", "gradients")

# Tensors that became non-finite in the same step -> likely cause and remedy. The first row whose tensors were all found
# applies.
LIKELY_CAUSES: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("x_natural",),
        "x_natural: the data hold it or their augmentation makes it; leave out that image, or set on_nonfinite=skip",
    ),
    (
        ("student_logits", "teacher_logits"),
        "the student's and the teacher's logits while x_natural is finite: one of them takes the search to an x_adv "
        "that is not finite; check the weights of both, or set precision.student and precision.teacher to fp32",
    ),
    (
        ("teacher_logits",),
        "the teacher's logits while x_natural and the student's logits are finite: the teacher's weights or precision "
        "(fp16 overflows above 65504); load other weights, or set precision.teacher=bf16",
    ),
    (
        ("student_logits",),
        "the student's logits while x_natural is finite: its weights have diverged or were not finite at the start; "
        "lower the learning rate, or load other weights",
    ),
    (
        ("loss",),
        "the loss while x_natural and all logits are finite: the logits lie too far apart for it; lower the learning "
        "rate, and in a loss of your own guard divisions and logarithms",
    ),
    (
        ("gradients",),
        "the gradients while the loss is finite: the backward pass overflows or differentiates a root or a norm at 0; "
        "lower the learning rate, or guard that layer",
    ),
)

# A bad image spoils one step of an epoch, a rare overflow a few. This many spoiled steps in a row have a cause that no
# step removes, such as weights that are NaN already. It is more than a small data set's epoch of bad files, and at most
# minutes of a large one's.
MAX_SKIPPED_IN_A_ROW = 100

# The scale of fp16 begins at 2^16 and is halved at each infinite gradient. Below 1 it shrinks gradients; gradients that
# are still infinite after 30 halvings in a row are infinite at any scale.
MIN_FP16_SCALE = 2.0**-14


class NonFiniteError(ValueError):
    """NaN or inf in a training; the message is one line with the step, the tensor, the likely cause and the remedy."""


def find_nonfinite(
    x_natural: Sequence[Tensor], logits: Sequence[dict[str, Tensor]], loss: Tensor, gradients: list[Tensor]
) -> Tensor:
    """Finds out which of TENSORS hold NaN or inf.

    Args:
        x_natural: Natural images [B, C, H, W] of each micro-batch.
        logits: Logits [B, N] by name, of each micro-batch. -inf masks a class and counts as finite.
        loss: Scalar.
        gradients: Gradients of the parameters; one whose squared norm overflows counts as infinite.

    Returns:
        bool [5] on the device, in the order of TENSORS.
    """
    named = [item for of_batch in logits for item in of_batch.items()]
    per_network = [
        [(values < torch.inf).all() for name, values in named if name.startswith(network)]
        for network in ("student_logits", "teacher_logits")
    ]
    finite = [
        _all([x.sum().isfinite() for x in x_natural], loss),
        *(_all(flags, loss) for flags in per_network),
        loss.isfinite(),
        _all([torch.stack(torch._foreach_norm(gradients)).isfinite().all()] if gradients else [], loss),
    ]
    return ~torch.stack(finite)


def _all(flags: list[Tensor], like: Tensor) -> Tensor:
    """Returns whether all scalars are true, as a tensor on the device of `like`; true for an empty list."""
    if not flags:
        return like.new_ones((), dtype=torch.bool)
    return flags[0] if len(flags) == 1 else torch.stack(flags).all()


class NonFiniteCounters:
    """Counters of the non-finite values in the steps so far, on the device.

    An update is spoiled if its loss or gradients are non-finite. With `skip` the caller reverts spoiled updates, and a
    step that is not spoiled clears the findings before it.

    Args:
        on_nonfinite: Treatment of a spoiled update, `stop` or `skip`.
        device: Device of the step.

    Raises:
        ValueError: Unknown value of `on_nonfinite`.
    """

    def __init__(self, on_nonfinite: OnNonfinite, device: torch.device) -> None:
        if on_nonfinite not in ("stop", "skip"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}: choose stop or skip")
        self.on_nonfinite = on_nonfinite
        self.counts = torch.zeros(3 + len(TENSORS), dtype=torch.int64, device=device)
        """Number of steps, of spoiled steps, and of spoiled steps in a row up to now; then the step in which each of
        TENSORS was found first (0: never). add() writes to it in place."""

    @torch.no_grad()
    def add(self, found: Tensor) -> Tensor:
        """Adds find_nonfinite's result for one step; returns a bool scalar on the device: the update is spoiled."""
        spoiled = found[TENSORS.index("loss") :].any()
        step, num_spoiled, in_a_row = self.counts[:3].unbind()
        first = self.counts[3:]
        step += 1
        num_spoiled += spoiled
        in_a_row.add_(1).mul_(spoiled)
        first.copy_(torch.where(found & (first == 0), step, first))
        if self.on_nonfinite == "skip":
            first.mul_(spoiled)
        return spoiled

    def check(self, process_group: ProcessGroup) -> None:
        """Checks what all ranks have found. Waits for the device.

        Raises:
            NonFiniteError: A rank met NaN or inf; with `skip`, MAX_SKIPPED_IN_A_ROW updates in a row were skipped.
        """
        by_rank = process_group.all_gather(self.counts.tolist())
        in_a_row = by_rank[0][2]  # an update is spoiled on all ranks or on none
        first = [min(filter(None, steps), default=0) for steps in zip(*(counts[3:] for counts in by_rank), strict=True)]
        if self.on_nonfinite == "stop" and any(first):
            raise NonFiniteError(_likely_cause(first))
        if self.on_nonfinite == "skip" and in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{in_a_row} updates in a row were skipped, since {_likely_cause(first)}")

    def read_skipped(self) -> int:
        """Returns the number of updates that were skipped so far. Waits for the device."""
        return int(self.counts[1]) if self.on_nonfinite == "skip" else 0


def check_scale(scaler: torch.amp.GradScaler) -> None:
    """Raises NonFiniteError if the scale of fp16 has fallen below MIN_FP16_SCALE. Waits for the device."""
    if scaler.is_enabled() and (scale := scaler.get_scale()) < MIN_FP16_SCALE:
        raise NonFiniteError(
            f"NaN or inf in the gradients of step after step: fp16's scale has fallen to {scale:.1g}, and no update is "
            "made any more; set precision.student=bf16"
        )


def _likely_cause(first: Sequence[int]) -> str:
    """Describes the earliest finding. `first`: step in which each of TENSORS was found first, 0: never."""
    step = min(number for number in first if number)
    found = {name for name, number in zip(TENSORS, first, strict=True) if number == step}
    cause = next(text for names, text in LIKELY_CAUSES if found.issuperset(names))
    return f"step {step}: NaN or inf in {cause}"


class UpdateGuard:
    """Snapshot of everything that a training step changes, for reverting a non-finite update on the device.

    Args:
        student: Network that the step trains.
        optimizer: Its optimiser.
        sums: Further tensors that the step writes to.
    """

    def __init__(self, student: nn.Module, optimizer: Optimizer, sums: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.states = {parameter: dict(state) for parameter, state in optimizer.state.items()}
        self.groups = [dict(group) for group in optimizer.param_groups]
        self.tensors = [
            *(parameter for group in optimizer.param_groups for parameter in group["params"]),
            *(value for state in self.states.values() for value in state.values() if isinstance(value, Tensor)),
            *student.buffers(),
            *sums,
        ]
        self.values = [tensor.detach().clone() for tensor in self.tensors]

    @torch.no_grad()
    def revert_if(self, spoiled: Tensor) -> None:
        """Restores the snapshot bitwise if `spoiled`, a bool scalar on the device; otherwise changes nothing.

        Waits for the device if the optimiser has created state, as in its first update, or keeps state on the host.
        """
        by_device = {device: spoiled.to(device) for device in {tensor.device for tensor in self.tensors}}
        has_other_state = self._has_other_state()
        if any(self.states.values()) and (has_other_state or len(by_device) > 1):
            warnings.warn(
                f"on_nonfinite=skip waits for the device at each step of {type(self.optimizer).__name__}, which keeps "
                "numbers on the host: construct it with fused=True or capturable=True",
                stacklevel=2,
            )
        if has_other_state and spoiled:
            self.optimizer.state.clear()
            self.optimizer.state.update(self.states)
            for group, kept in zip(self.optimizer.param_groups, self.groups, strict=True):
                group.clear()
                group.update(kept)
        for tensor, value in zip(self.tensors, self.values, strict=True):
            tensor.copy_(torch.where(by_device[tensor.device], value, tensor))

    def _has_other_state(self) -> bool:
        """Returns True if the state has new tensors or changed numbers, which no copy in place reverts."""
        before = [_identities(entries) for entries in (*self.states.values(), *self.groups)]
        now = [_identities(entries) for entries in (*self.optimizer.state.values(), *self.optimizer.param_groups)]
        return before != now


def _identities(entries: dict[str, Any]) -> dict[str, Any]:
    """Identities of tensors and lists, whatever they hold, and the values of everything else, for comparison."""
    return {name: id(value) if isinstance(value, (Tensor, list)) else value for name, value in entries.items()}
