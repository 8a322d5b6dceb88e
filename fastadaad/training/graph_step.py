"""A whole training step as one CUDA graph: whether it can be one, and what makes it be captured anew."""

import warnings
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from fastadaad.inner.maximizer import InnerMaximizer, drawing_generator
from fastadaad.runtime.cuda_graph import CapturedCall
from fastadaad.training.capturable_optimizer import CapturableOptimizer

# (x_natural, labels, epoch, generator, optimizer) -> the loss and x_adv: all of a step that happens on the device.
Train = Callable[..., tuple[Tensor, Tensor]]


def captured_step(
    train: Train,
    maximizer: InnerMaximizer,
    optimizer: Optimizer,
    micro_batch: int | None,
    sums: Sequence[Tensor],
    *,
    num_processes: int = 1,
) -> "CapturedStep | None":
    """`train` to be captured; None, which warns, where a graph cannot hold it and only the inner loop is captured.

    sums: what `train` changes beside the student and the optimiser's state.
    """
    why_not = None
    if micro_batch is not None:
        why_not = "micro_batch takes a batch in parts, each of them captured"
    elif num_processes > 1:
        why_not = "several processes exchange gradients in it"
    elif maximizer.precision.student == "fp16":
        why_not = "a student in fp16 leaves out some updates: set precision.student to bf16"
    else:
        try:
            return CapturedStep(train, maximizer, optimizer, sums)
        except ValueError as error:
            why_not = str(error)
    warnings.warn(f"mode graph captures the inner loop and not the whole step: {why_not}", stacklevel=3)
    return None


class CapturedStep:
    """`train`, captured at the first call and replayed, and captured anew when a value changes that a graph freezes.

    Those are what the epoch decides, the interval of the teacher policy, the generator, modes and `requires_grad` of
    the student, the optimiser's settings beside the learning rate, and the addresses of all tensors that stay. There is
    one capture at a time, since each holds the memory of a step. A batch of another shape than the first runs
    uncaptured. Raises ValueError for an optimiser that cannot be captured.
    """

    def __init__(self, train: Train, maximizer: InnerMaximizer, optimizer: Optimizer, sums: Sequence[Tensor]) -> None:
        self.train, self.maximizer, self.optimizer, self.sums = train, maximizer, optimizer, sums
        self._capturable = CapturableOptimizer(optimizer)
        self._frozen: tuple = ()
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
        decided: Hashable,
    ) -> tuple[Tensor, Tensor]:
        """As train; both tensors are overwritten by the next call. `decided`: all that the epoch decides in it."""
        self._epoch, self._generator = epoch, drawing_generator(generator, x_natural.device)
        self._shape = self._shape or x_natural.shape
        frozen = self._frozen_values(x_natural, decided)
        if self._call is None or (frozen != self._frozen and x_natural.shape == self._shape):
            self._call = self._new_call(x_natural)
            self._frozen = self._frozen_values(x_natural, decided)
        self._capturable.refresh()
        return self._call(*[x_natural] if labels is None else [x_natural, labels])

    def _new_call(self, x_natural: Tensor) -> CapturedCall:
        self._call = None  # The memory of the last capture is free for the next one.
        self._capturable = CapturableOptimizer(self.optimizer)
        assert self._generator is not None
        # The twins are made and their layout is measured before anything is recorded.
        with self.maximizer.networks(x_natural):
            pass
        return CapturedCall(self._run, state=self._state(), generators=[self._generator])

    def _run(self, x_natural: Tensor, *labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.train(x_natural, labels[0] if labels else None, self._epoch, self._generator, self._capturable)

    def _state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [*self._capturable.state, *self.maximizer.student.buffers(), *self.sums]

    def _frozen_values(self, x_natural: Tensor, decided: Hashable) -> tuple:
        """What a capture holds as it is, to be compared with what there is now."""
        student = self.maximizer.student
        return (
            decided,
            self._generator,
            self.maximizer.asking_interval,
            self.maximizer.teacher_network(x_natural),  # refreshed here if the teacher has changed
            [module.training for module in student.modules()],
            [parameter.requires_grad for parameter in student.parameters()],
            [
                {name: value for name, value in group.items() if name not in ("params", "lr")}
                for group in self.optimizer.param_groups
            ],
            [id(tensor) for tensor in (*student.parameters(), *self._state())],
        )
