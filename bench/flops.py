"""FLOPs and bytes of a training step's convolutions and linear layers, per image.

A multiplication and an addition are two FLOPs. The gradient to a layer's input and the gradient to its weights each
cost as much as its forward pass. Bytes are the minimum of a program that runs layer by layer: each layer reads its
input and writes its output once per pass; everything between layers (batch-norm, ReLU, additions) is fused at no cost.
"""

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fastadaad import methods
from fastadaad.config import TeacherPolicy

COUNTED = (nn.Conv2d, nn.Linear)
MOMENTUM_PASSES = 5  # weights, momentum and gradient read, the first two written
START_TENSORS, STEP_TENSORS = 3, 4  # images read and written by random_start_ and by a projected step


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One convolution or linear layer in a forward pass of one image."""

    flops: int
    inputs: int
    outputs: int
    weights: int
    module: nn.Module
    """The layer on the meta device, which limits.py runs alone."""
    input_shape: tuple[int, ...]
    """Shape of the input without the batch dimension."""


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """Cost of one forward pass of one image through a network."""

    layers: tuple[LayerCost, ...]

    @property
    def flops(self) -> int:
        return sum(layer.flops for layer in self.layers)

    @property
    def elements(self) -> int:
        return sum(layer.inputs + layer.outputs for layer in self.layers)

    @property
    def weights(self) -> int:
        return sum(layer.weights for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of one training step, per image."""

    flops: float
    num_bytes: float


def network_cost(network: nn.Module, image_shape: tuple[int, int, int]) -> NetworkCost:
    """Counts the layers by hooks in a forward pass on the meta device; `image_shape` is (C, H, W)."""
    network, layers = copy.deepcopy(network).to("meta").eval(), []

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        x, weight = inputs[0], module.weight
        layers.append(
            LayerCost(
                # Each output element is a sum over the weights of its channel.
                flops=2 * output.numel() * weight[0].numel(),
                inputs=x.numel(),
                outputs=output.numel(),
                weights=weight.numel(),
                module=module,
                input_shape=tuple(x.shape[1:]),
            )
        )

    for module in network.modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.empty(1, *image_shape, device="meta"))
    return NetworkCost(layers=tuple(layers))


@dataclass(frozen=True, kw_only=True)
class OuterPasses:
    """Passes of Distiller's step outside the inner loop."""

    student_statistics: int = 0
    """Student passes without gradient: for batch-norm's running statistics, or as the loop's target."""
    student_trained: int = 1
    teacher_forwards: int = 0
    teacher_backwards: int = 0


OUTER_PASSES = {
    "adaad": OuterPasses(student_statistics=1, teacher_forwards=1),
    "adaiad": OuterPasses(student_trained=2, teacher_forwards=1),
    "pgd-at": OuterPasses(),
    "trades": OuterPasses(student_statistics=1, student_trained=2),
    "mart": OuterPasses(student_trained=2),
    "lbgat-fixed": OuterPasses(student_statistics=1, student_trained=2, teacher_forwards=1),
    "ard": OuterPasses(student_statistics=1, teacher_forwards=1),
    "iad": OuterPasses(student_trained=2, teacher_forwards=2),
    "rslad": OuterPasses(student_trained=2, teacher_forwards=1),
    "akd": OuterPasses(teacher_forwards=1),
    "saad": OuterPasses(student_statistics=1, student_trained=2, teacher_forwards=3, teacher_backwards=1),
}


# Further student passes for batch-norm's statistics that a program makes (fastadaad/methods/programs.py).
PROGRAM_STATISTICS = {"adaiad": 2, "pgd-at": 1, "trades": 1, "iad": 1}


def outer_passes(method: str, *, as_program: bool) -> OuterPasses:
    """Returns the passes of a row, or of the row with the option `statistics` of its authors' program."""
    name = method.partition("+")[0]
    passes = OUTER_PASSES[name]
    extra = PROGRAM_STATISTICS.get(name, 0) if as_program else 0
    return replace(passes, student_statistics=passes.student_statistics + extra)


def inner_teacher_passes(num_steps: int, policy: TeacherPolicy | None = None) -> tuple[int, int]:
    """Returns the teacher's forward and backward passes in `num_steps` inner steps that go through it.

    An adaptive policy (every=None) is counted at its best: one evaluation for the whole loop. None stands for exact.
    """
    if policy is None or policy.kind == "exact":
        return num_steps, num_steps
    forwards = math.ceil(num_steps / (policy.every or num_steps))
    return forwards, forwards * (policy.top if policy.kind == "linearized" else 1)


def step_cost(
    student: NetworkCost,
    teacher: NetworkCost | None,
    num_steps: int,
    teacher_forwards: float,
    teacher_backwards: float,
    *,
    outer: OuterPasses = OUTER_PASSES["adaad"],
    batch_size: int = 128,
    element_bytes: int = 4,
) -> StepCost:
    """Cost of one training step per image; weights are moved once per pass of a batch.

    Only the inner loop computes the gradient to the pixels: the outer backward pass stops at the first layer.

    Args:
        student: Forward pass of the student.
        teacher: Forward pass of the teacher, if the method has one.
        num_steps: Inner steps.
        teacher_forwards: Forward passes of the teacher in the inner loop, or their mean over a training.
        teacher_backwards: Backward passes of the teacher in the inner loop, or their mean.
        outer: Passes outside the inner loop.
        batch_size: Images of a batch, which share the weights.
        element_bytes: Bytes of a number.
    """
    first, trained = student.layers[0], outer.student_trained
    student_passes = 2 * num_steps + outer.student_statistics + 3 * trained
    teacher_passes = teacher_forwards + teacher_backwards + outer.teacher_forwards + outer.teacher_backwards
    flops = student_passes * student.flops - trained * first.flops
    elements = student_passes * student.elements - trained * (first.inputs + first.outputs)
    elements += (START_TENSORS + STEP_TENSORS * num_steps) * first.inputs
    weights = (student_passes + MOMENTUM_PASSES) * student.weights
    if teacher is not None:
        flops += teacher_passes * teacher.flops
        elements += teacher_passes * teacher.elements
        weights += teacher_passes * teacher.weights
    return StepCost(flops=flops, num_bytes=element_bytes * (elements + weights / batch_size))


def method_cost(
    method: str,
    student: NetworkCost,
    teacher: NetworkCost | None,
    num_steps: int,
    policy: TeacherPolicy | None = None,
    *,
    as_program: bool = False,
    **settings: int,
) -> StepCost:
    """Cost of one training step per image, with the passes of a method.

    Args:
        method: Name of the method.
        student: Forward pass of the student.
        teacher: Forward pass of the teacher, if the method has one.
        num_steps: Inner steps.
        policy: Teacher policy; None stands for exact.
        as_program: Count the program's passes for batch-norm's statistics too.
        settings: batch_size and element_bytes of step_cost.
    """
    through_teacher = methods.get(method).through_teacher
    passes = inner_teacher_passes(num_steps, policy) if through_teacher else (0, 0)
    outer = outer_passes(method, as_program=as_program)
    return step_cost(student, teacher, num_steps, *passes, outer=outer, **settings)
