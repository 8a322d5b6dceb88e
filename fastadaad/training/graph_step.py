"""A whole training step as one CUDA graph: its conditions, and the changes that require a new capture."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.inner.start import drawing_generator
from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.training.capturable_optimizer import CapturableOptimizer

# (x_natural, labels, epoch, generator, optimizer) -> the loss and x_adv: the part of a step that runs on the device.
Update = Callable[..., tuple[Tensor, Tensor]]


def captured_step(
    update: Update,
    maximizer: InnerMaximizer,
    optimizer: Optimizer,
    sums: Sequence[Tensor],
    *,
    skips_updates: bool = False,
    num_ranks: int = 1,
) -> "CapturedStep | None":
    """Wraps `update` for capture; warns and returns None if a graph can hold the inner loop alone.

    Args:
        update: Function to capture.
        maximizer: Search of the step.
        optimizer: Optimiser of the student.
        sums: Tensors that `update` changes besides the student and the optimiser's state.
        skips_updates: The update is left out if a gradient is infinite, as in fp16.
        num_ranks: Number of ranks that train together.
    """
    if num_ranks > 1:
        why_not = "several ranks exchange gradients in it"
    elif skips_updates and not getattr(optimizer, "_step_supports_amp_scaling", False):
        why_not = (
            f"in fp16 the host decides about each update of {type(optimizer).__name__}: construct it with fused=True, "
            "or set precision.student to bf16"
        )
    else:
        try:
            return CapturedStep(update, maximizer, optimizer, sums)
        except ValueError as error:
            why_not = str(error)
    warnings.warn(f"mode graph captures the inner loop and not the whole step: {why_not}", stacklevel=3)
    return None


class CapturedStep:
    """Training step that is captured at the first call, replayed, and captured again if a frozen value changes.

    A graph freezes the method's epoch key, the interval of the teacher policy, the generator, modes and `requires_grad`
    of the student, the optimiser's settings except the learning rate, and the addresses of all static tensors. There is
    one capture at a time, since each holds the memory of a step. A batch of another shape than the first runs
    uncaptured.

    Raises:
        ValueError: The optimiser cannot be captured.
    """

    def __init__(self, update: Update, maximizer: InnerMaximizer, optimizer: Optimizer, sums: Sequence[Tensor]) -> None:
        self.update, self.maximizer, self.optimizer, self.sums = update, maximizer, optimizer, sums
        self._capturable = CapturableOptimizer(optimizer)
        self._frozen: tuple[Any, ...] = ()
        self._call: CapturedCall | None = None
        self._shape: torch.Size | None = None
        self._epoch: int = 0
        self._generator: torch.Generator | None = None

    def __call__(
        self,
        x_natural: Tensor,
        labels: Tensor | None,
        epoch: int,
        generator: torch.Generator | None,
        epoch_key: Hashable,
    ) -> tuple[Tensor, Tensor]:
        """Runs the step; the next call overwrites both tensors. `epoch_key`: everything that depends on the epoch."""
        self._epoch, self._generator = epoch, drawing_generator(generator, x_natural.device)
        self._shape = self._shape or x_natural.shape
        frozen = self._frozen_values(x_natural, epoch_key)
        if self._call is None or (frozen != self._frozen and x_natural.shape == self._shape):
            self._call = self._new_call(x_natural)
            self._frozen = self._frozen_values(x_natural, epoch_key)
        self._capturable.refresh()
        return self._call(*[x_natural] if labels is None else [x_natural, labels])

    def _new_call(self, x_natural: Tensor) -> CapturedCall:
        self._call = None  # frees the memory of the last capture for the next one
        self._capturable = CapturableOptimizer(self.optimizer)
        assert self._generator is not None
        # Folded copies are made, and their layout is measured, before anything is recorded.
        with self.maximizer.networks(x_natural):
            pass
        return CapturedCall(self._run, state=self._state(), generators=[self._generator])

    def _run(self, x_natural: Tensor, *labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.update(x_natural, labels[0] if labels else None, self._epoch, self._generator, self._capturable)

    def _state(self) -> list[Tensor]:
        """Returns all tensors that a step changes."""
        return [*self._capturable.state, *self.maximizer.student.buffers(), *self.sums]

    def _frozen_values(self, x_natural: Tensor, epoch_key: Hashable) -> tuple[Any, ...]:
        """Values that a capture freezes, for comparison with the present ones."""
        student = self.maximizer.student
        return (
            epoch_key,
            self._generator,
            self.maximizer.query_interval,
            self.maximizer.teacher_network(x_natural),  # refreshed here if the teacher has changed
            [module.training for module in student.modules()],
            [parameter.requires_grad for parameter in student.parameters()],
            [
                {name: value for name, value in group.items() if name not in ("params", "lr")}
                for group in self.optimizer.param_groups
            ],
            [id(tensor) for tensor in (*student.parameters(), *self._state())],
        )
