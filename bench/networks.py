"""Pairs of networks, and the variants of a training step on them, for `python -m bench step`."""

import copy
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import product

import torch
from torch import Tensor, nn

from fastadaad import Distiller, InnerConfig, load_model, methods
from fastadaad.config import PrecisionConfig, TeacherPolicy
from fastadaad.runtime.precision import tensor_cores
from fastadaad.training import plain_program as reference


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Names of student and teacher, and the shape of their batch."""

    student: str
    teacher: str
    channels: int
    size: int
    batch_size: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    def networks(self, device: torch.device | str) -> tuple[nn.Module, nn.Module]:
        """Returns student and teacher with the same random weights in each call; the teacher is in eval mode."""
        torch.manual_seed(0)
        # Random weights are those of the CPU on every device; the meta device has none.
        with torch.device("meta" if torch.device(device).type == "meta" else "cpu"):
            student, teacher = (load_model(name, in_channels=self.channels) for name in (self.student, self.teacher))
        return student.to(device), teacher.to(device).eval()

    def batch(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns x_natural [B, C, H, W] in [0, 1] and labels [B], the same in each call."""
        torch.manual_seed(0)
        x_natural = torch.rand(self.batch_size, *self.image_shape, device=device)
        return x_natural, torch.randint(10, (self.batch_size,), device=device)


def _pair(student: str, teacher: str, channels: int, size: int, batch_size: int) -> Pair:
    return Pair(student=student, teacher=teacher, channels=channels, size=size, batch_size=batch_size)


PAIRS = {
    "demo": _pair("cnn-16-s1", "cnn-72-s1", 1, 8, 64),
    "small": _pair("cnn-16", "cnn-48", 1, 28, 128),
    "fashion-mnist": _pair("cnn-32", "cnn-48", 1, 28, 128),
    "rescnn": _pair("rescnn-8", "cnn-48", 1, 28, 128),
    "cifar": _pair("resnet18", "wrn-16-4", 3, 32, 32),
    "mobilenet": _pair("mobilenet-v2", "wrn-16-4", 3, 32, 32),
    "paper": _pair("resnet18", "wrn-34-20", 3, 32, 128),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One implementation of a method's training step: a plain program, or Distiller in a mode."""

    mode: str
    """A mode of Distiller, or the name of a reference."""
    policy: TeacherPolicy = field(default_factory=TeacherPolicy)
    precision: str = "fp32"
    """Precision of both networks. Of a reference: fp32, tf32, or `default`, which is torch's own setting."""

    @property
    def is_reference(self) -> bool:
        return self.mode.startswith("reference")

    @property
    def reference(self) -> "Variant":
        """Reference with the same arithmetic on CUDA: fp32, tf32, or for other precisions torch's default."""
        return Variant(mode="reference", precision=reference_precision(self.precision))

    @property
    def name(self) -> str:
        parts = [self.mode if self.is_reference else f"distiller-{self.mode}"]
        parts += [str(self.policy)] if self.policy.kind != "exact" else []
        return " ".join(parts + ([self.precision] if self.precision != "fp32" else []))


def references(method: str) -> dict[str, reference.Reference]:
    """Returns by name the program of the method's authors, and versions of it without repeated passes."""
    return {"reference": reference.REFERENCES[method], **reference.LEANER.get(method, {})}


def reference_precision(precision: str) -> str:
    """Returns the precision of the reference that a Distiller in `precision` is compared with."""
    return precision if precision in ("fp32", "tf32") else "default"


def reference_in(names: Container[str], variant: Variant) -> str | None:
    """Returns the name of the reference that `variant` is compared with, or None if `names` has none for it."""
    return next((name for name in (variant.reference.name, "reference") if name in names), None)


def variants_of(
    method: str, modes: list[str], policies: list[TeacherPolicy], precisions: list[str], *, device_type: str = "cpu"
) -> Iterator[Variant]:
    """Yields the references, exact Distillers in every mode and precision, and each policy in the last of both.

    On CUDA there is a reference for each kind of arithmetic, so that equal arithmetic can be compared.

    Args:
        method: Name of the method.
        modes: Modes of Distiller.
        policies: Teacher policies, used if the inner loop goes through the teacher.
        precisions: Precisions of both networks; policies have the last one.
        device_type: Type of the device; on the CPU all references are in fp32.
    """
    arithmetic = ["fp32"] if device_type == "cpu" else dict.fromkeys(map(reference_precision, precisions))
    yield from (Variant(mode=name, precision=precision) for name, precision in product(references(method), arithmetic))
    yield from (Variant(mode=mode, precision=precision) for mode, precision in product(modes, precisions))
    if methods.get(method).through_teacher:
        yield from (Variant(mode=modes[-1], policy=policy, precision=precisions[-1]) for policy in policies)


class Program:
    """A variant of the method's step on the pair's batch, with its own networks and optimizer."""

    def __init__(self, pair: Pair, method: str, variant: Variant, inner: InnerConfig, device: torch.device) -> None:
        self.variant, self.inner = variant, inner
        self.student, self.teacher = map(copy.deepcopy, pair.networks(device))
        self.x_natural, self.labels = pair.batch(device)
        # A CUDA graph holds a fused step alone; the authors' programs leave torch's default.
        settings = {} if variant.is_reference else {"fused": True}
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, **settings)
        if variant.is_reference:
            self.reference = references(method)[variant.mode]
        else:
            self.distiller = self._distiller(method)

    def _distiller(self, method: str) -> Distiller:
        row = methods.get(method, **reference.REFERENCES[method].options)
        settings = {"precision": self.variant.precision}
        if self.variant.policy.kind != "exact":
            settings["teacher_policy"] = self.variant.policy
        return Distiller(
            self.student,
            self.teacher,
            method=row,
            inner=self.inner,
            optimizer=self.optimizer,
            mode=self.variant.mode,
            **settings,
        )

    def _arithmetic(self) -> AbstractContextManager[None]:
        """Switches TF32 on or off for a reference, unless it keeps torch's default."""
        if self.variant.precision == "default":
            return nullcontext()
        return tensor_cores(PrecisionConfig.parse(self.variant.precision), self.x_natural.device)

    def step(self) -> object:
        """Runs one training step."""
        if not self.variant.is_reference:
            return self.distiller.step(self.x_natural, self.labels)
        networks = self.student, self.teacher, self.optimizer
        with self._arithmetic():
            return reference.reference_step(self.reference, *networks, self.x_natural, self.labels, inner=self.inner)

    def inner_loop(self) -> object:
        """Runs the inner loop alone."""
        if not self.variant.is_reference:
            return self.distiller.maximizer.search(self.x_natural, self.labels)
        batch = reference.Batch(
            student=self.student, teacher=self.teacher, x_natural=self.x_natural, labels=self.labels
        )
        with self._arithmetic():
            return reference.reference_inner_loop(self.reference, batch, self.inner)
