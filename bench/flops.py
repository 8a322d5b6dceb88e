"""What a training step must compute and move: FLOPs and bytes of its convolutions and linear layers, for one image.

A multiplication and an addition are two FLOPs. The gradient to a layer's input, and that to its weights, cost as much
as its forward pass. Bytes are the least that a program moves which runs layer by layer: each layer's input read and
output written once a pass, all between them (batch-norm, ReLU, additions) fused into it for nothing.
"""

import copy
import math
from dataclasses import dataclass

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
    """The layer, on the meta device, for whoever wants to run it."""
    input_shape: tuple[int, ...]
    """Without the batch."""


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """One forward pass of one image through a network."""

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
    """One training step, per image."""

    flops: float
    num_bytes: float


def network_cost(network: nn.Module, image_shape: tuple[int, int, int]) -> NetworkCost:
    """Counted by hooks in a forward pass of `network` on one image [C, H, W]; nothing is computed."""
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
    """Forward passes of Distiller's step outside of the loop's own, by what they prepare for."""

    student_statistics: int = 0
    """Without gradient: for batch-norm's running statistics, or as the loop's target."""
    student_trained: int = 1
    teacher_forwards: int = 0
    teacher_backwards: int = 0


OUTER_PASSES = {
    "adaad": OuterPasses(student_statistics=1, teacher_forwards=1),
    "adaiad": OuterPasses(student_trained=2, teacher_forwards=1),
    "pgd-at": OuterPasses(),
    "trades": OuterPasses(student_statistics=1, student_trained=2),
    "ard": OuterPasses(student_statistics=1, teacher_forwards=1),
    "iad": OuterPasses(student_trained=2, teacher_forwards=2),
    "rslad": OuterPasses(student_trained=2, teacher_forwards=1),
    "akd": OuterPasses(teacher_forwards=1),
    "saad": OuterPasses(student_statistics=1, student_trained=2, teacher_forwards=3, teacher_backwards=1),
}


def inner_teacher_passes(num_steps: int, policy: TeacherPolicy | None = None) -> tuple[int, int]:
    """Forwards and backwards of the teacher in `num_steps` inner steps that pass through it; None: exact.

    An adaptive policy (every=None) is counted at its best, one answer for the whole loop.
    """
    if policy is None or policy.kind == "exact":
        return num_steps, num_steps
    answers = math.ceil(num_steps / (policy.every or num_steps))
    return answers, answers * (policy.top if policy.kind == "linearized" else 1)


def step_cost(
    student: NetworkCost,
    teacher: NetworkCost | None,
    num_steps: int,
    teacher_forwards: int,
    teacher_backwards: int,
    *,
    outer: OuterPasses = OUTER_PASSES["adaad"],
    batch_size: int = 128,
    element_bytes: int = 4,
) -> StepCost:
    """Of one step with `num_steps` inner steps in which the teacher runs so many passes; weights once a batch.

    The gradient to the pixels ends at the student's input in the loop only: the outer backward pass stops before it.
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
    **settings: int,
) -> StepCost:
    """step_cost with the passes of a method of the table, whose teacher takes part in the loop or does not."""
    through_teacher = methods.get(method).objective.through_teacher
    passes = inner_teacher_passes(num_steps, policy) if through_teacher else (0, 0)
    outer = OUTER_PASSES[method]
    return step_cost(student, teacher, num_steps, *passes, outer=outer, **settings)
