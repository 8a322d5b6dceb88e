"""One batch on its way through the outer minimisation, and the logits that losses ask of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastadaad.inner.checks import check_logits

# Where a loss may ask the networks: x_natural, x_adv, and 2 x_natural - x_adv.
Point = Literal["natural", "adv", "opposite"]


def sees_the_batch(network: nn.Module) -> bool:
    """Whether an image's logits or the running statistics depend on the batch it is in: on batch-norm in train mode."""
    return any(_sees_the_batch(module) for module in network.modules())


def _sees_the_batch(module: nn.Module) -> bool:
    running_mean = getattr(module, "running_mean", None)
    if isinstance(module, _BatchNorm):
        return module.training or running_mean is None
    # Other people's batch-norm classes are known by their statistics.
    return module.training and running_mean is not None


@dataclass(frozen=True, kw_only=True)
class OuterBatch:
    """What an outer loss sees. The logits of a network at a point are computed when they are first asked for, and once.

    What a loss asks for in one call comes from one forward on the concatenated points, where no layer of the network
    sees the batch; else from one forward per point, in the order asked for. A loss asks for the student's logits at
    x_natural before those at x_adv, as the authors' programs do: the order decides the running statistics of
    batch-norm. All logits are fp32, also under autocast.
    """

    student: nn.Module
    teacher: nn.Module | None
    x_natural: Tensor
    x_adv: Tensor
    labels: Tensor | None
    epoch: int
    logits: dict[str, Tensor] = field(default_factory=dict)
    """Those known so far, by name."""

    @property
    def x_opposite(self) -> Tensor:
        """x_adv mirrored at x_natural, [B, C, H, W]."""
        return 2 * self.x_natural - self.x_adv

    def student_logits(self, *points: Point) -> tuple[Tensor, ...]:
        """S at each point, [B, N] each, with gradient."""
        return self._logits("student", self.student, points)

    def teacher_logits(self, *points: Point) -> tuple[Tensor, ...]:
        """T at each point, [B, N] each, without gradient; for methods that need a teacher (Method checks it)."""
        assert self.teacher is not None
        with torch.no_grad():
            return self._logits("teacher", self.teacher, points)

    def expect(self, *points: Point) -> None:
        """One forward per network for points that a loss and its addition will ask for one after the other."""
        if not sees_the_batch(self.student):
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
        """Labels [B], for methods that need them (Method checks it)."""
        assert self.labels is not None
        return self.labels

    def _logits(self, name: str, network: nn.Module, points: tuple[Point, ...]) -> tuple[Tensor, ...]:
        keys = [f"{name}_logits_{point}" for point in points]
        missing = {key: getattr(self, f"x_{point}") for key, point in zip(keys, points, strict=True)}
        missing = {key: x for key, x in missing.items() if key not in self.logits}
        if missing:
            forward = separately if len(missing) == 1 or sees_the_batch(network) else together
            logits = forward(partial(logits_in_fp32, name, network), list(missing.values()))
            self.logits.update(zip(missing, logits, strict=True))
        return tuple(self.logits[key] for key in keys)


def separately(network: Callable[[Tensor], Tensor], points: list[Tensor]) -> list[Tensor]:
    """The logits [B, N] at each of the points [B, C, H, W]."""
    return [network(x) for x in points]


def together(network: Callable[[Tensor], Tensor], points: list[Tensor]) -> list[Tensor]:
    """The same by one forward."""
    return list(network(torch.cat(points)).chunk(len(points)))


def logits_in_fp32(name: str, network: nn.Module, x: Tensor) -> Tensor:
    """The logits [B, N] at x. Raises ValueError where the network returns others in train mode, as GoogLeNet does."""
    logits = network(x)
    check_logits(name, logits)
    return logits.float()
