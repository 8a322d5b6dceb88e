"""Inputs of an outer loss: one batch, both networks, and their logits at the points that the loss requests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from fastadaad.runtime.batch_norm import depends_on_batch

if TYPE_CHECKING:
    from fastadaad.methods.options import MethodOptions

# Points at which a loss may evaluate the networks: x_natural, x_adv, and 2 x_natural - x_adv.
Point = Literal["natural", "adv", "opposite"]


def are_soft(labels: Any) -> bool:
    """Returns True for label distributions, floats [B, N] of two classes or more, in place of class numbers [B]."""
    return isinstance(labels, Tensor) and labels.dim() == 2 and labels.is_floating_point() and labels.shape[1] > 1


@dataclass(frozen=True, kw_only=True)
class OuterBatch:
    """Inputs of an outer loss. Logits are computed when a loss first requests them, and only once.

    All points of one request share one forward pass on the concatenated points, unless a layer of the network depends
    on the batch: then each point has a forward pass of its own, in the order of the request. A loss requests the
    student's logits at x_natural before those at x_adv, as the authors' programs do: the order decides the running
    statistics of batch-norm. All logits are fp32, also under autocast.
    """

    student: nn.Module
    teacher: nn.Module | None
    x_natural: Tensor
    x_adv: Tensor
    labels: Tensor | None
    epoch: int
    logits: dict[str, Tensor] = field(default_factory=dict)
    """Logits [B, N] computed so far, by name, such as teacher_logits_natural."""
    passes: list[Point] | None = None
    """Passes of the student by the option `statistics` that are still to come; None: those that the loss needs."""
    expected: set[Point] = field(default_factory=set)
    """Points at which a later request needs the student's logits, so that an earlier pass keeps its gradient."""

    @property
    def x_opposite(self) -> Tensor:
        """x_adv mirrored at x_natural, [B, C, H, W]."""
        return 2 * self.x_natural - self.x_adv

    def student_logits(self, *points: Point) -> tuple[Tensor, ...]:
        """S at each point, [B, N] each, with gradient."""
        if self.passes is not None:
            self._run_passes_up_to(points, self.passes)
        return self._logits("student", self.student, points)

    def teacher_logits(self, *points: Point) -> tuple[Tensor, ...]:
        """T at each point, [B, N] each, without gradient. The method must need a teacher (Method checks it)."""
        assert self.teacher is not None
        with torch.no_grad():
            return self._logits("teacher", self.teacher, points)

    def _run_passes_up_to(self, points: tuple[Point, ...], passes: list[Point]) -> None:
        """Runs the listed passes in order until the student's logits at all of `points` are known."""
        missing = {point for point in points if f"student_logits_{point}" not in self.logits}
        for point in missing:
            if point not in passes:
                raise ValueError(
                    f"statistics lists x_{point} too early or not at all: list every point that the loss needs, after "
                    "those that it needs first"
                )
        while missing:
            point = passes.pop(0)
            if point in missing or point in self.expected:
                self._logits("student", self.student, (point,))
                missing.discard(point)
                self.expected.discard(point)
            else:
                self._learn_statistics(point)

    def run_remaining_passes(self) -> None:
        """Runs the listed passes that the loss did not need."""
        while self.passes:
            self._learn_statistics(self.passes.pop(0))

    def _learn_statistics(self, point: Point) -> None:
        with torch.no_grad():
            self.student(getattr(self, f"x_{point}"))

    def prefetch(self, *points: Point) -> None:
        """Computes the logits at several points in one batched forward pass per network and caches them."""
        if not depends_on_batch(self.student):
            self.student_logits(*points)
        self.teacher_logits(*points)

    @property
    def student_logits_natural(self) -> Tensor:
        """S(x_natural) [B, N], with gradient."""
        return self.student_logits("natural")[0]

    @property
    def student_logits_adv(self) -> Tensor:
        """S(x_adv) [B, N], with gradient."""
        return self.student_logits("adv")[0]

    @property
    def teacher_logits_natural(self) -> Tensor:
        """T(x_natural) [B, N], without gradient."""
        return self.teacher_logits("natural")[0]

    @property
    def teacher_logits_adv(self) -> Tensor:
        """T(x_adv) [B, N], without gradient."""
        return self.teacher_logits("adv")[0]

    @property
    def required_labels(self) -> Tensor:
        """Class numbers [B], or distributions [B, N] if the method takes them (Method checks both)."""
        assert self.labels is not None
        return self.labels

    def _logits(self, name: str, network: nn.Module, points: tuple[Point, ...]) -> tuple[Tensor, ...]:
        keys = [f"{name}_logits_{point}" for point in points]
        missing = {key: getattr(self, f"x_{point}") for key, point in zip(keys, points, strict=True)}
        missing = {key: x for key, x in missing.items() if key not in self.logits}
        if missing:
            forward = separately if len(missing) == 1 or depends_on_batch(network) else together
            logits = forward(partial(logits_in_fp32, name, network), list(missing.values()))
            self.logits.update(zip(missing, logits, strict=True))
        return tuple(self.logits[key] for key in keys)


def listed_passes(options: "MethodOptions", student: nn.Module, epoch: int) -> list[Point] | None:
    """Returns OuterBatch.passes in `epoch`; None without the option `statistics` or layers that depend on the batch."""
    if not options.statistics or not depends_on_batch(student):
        return None
    points: list[Point] = []
    for name in options.statistics:
        if name != "natural-introspective":
            points.append("adv" if name == "adversarial" else name)
        elif options.introspects(epoch):
            points.append("natural")
    return points


def outer_loss(
    loss: Callable[[OuterBatch, "MethodOptions"], Tensor], batch: OuterBatch, options: "MethodOptions"
) -> Tensor:
    """Value of a row's loss, a scalar with gradient, with the options of every row: `statistics` and `loss_scale`."""
    value = loss(batch, options)
    batch.run_remaining_passes()
    return value if options.loss_scale == 1 else options.loss_scale * value


def separately(network: Callable[[Tensor], Tensor], points: list[Tensor]) -> list[Tensor]:
    """Logits [B, N] at each of the points [B, C, H, W], by one forward pass per point."""
    return [network(x) for x in points]


def together(network: Callable[[Tensor], Tensor], points: list[Tensor]) -> list[Tensor]:
    """Logits [B, N] at each of the points [B, C, H, W], by one forward pass for all."""
    return list(network(torch.cat(points)).chunk(len(points)))


def logits_in_fp32(name: str, network: nn.Module, x: Tensor) -> Tensor:
    """Logits [B, N] of the network called `name` at x.

    Raises:
        ValueError: The network returns something else in train mode, as GoogLeNet does.
    """
    logits = network(x)
    check_network_output(name, logits)
    return logits.float()


def check_network_output(name: str, logits: Any) -> None:
    """Raises ValueError unless the output of the network called `name` is one tensor [B, N]."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} returns {type(logits).__name__}: let it return its logits [B, N] alone")
    if logits.dim() != 2:
        raise ValueError(f"{name} returns logits of shape {list(logits.shape)}: let it return [B, N], one per class")
