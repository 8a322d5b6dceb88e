"""Model of a training step's time on a card, from the shapes of its layers and constants stated here.

A convolution is a matrix product of M output pixels by N channels, K deep, cut into tiles that the card's units work
off in waves. It takes the larger of that time and of its bytes' time. Everything else is bytes and launches: both
counted in generated code (bench/results/generated.csv). The host works while the device does; the slower one decides.
"""

import math
from dataclasses import dataclass, replace

from torch import nn

from fastadaad import methods
from fastadaad.config import TeacherPolicy

from .flops import MOMENTUM_PASSES, OUTER_PASSES, LayerCost, NetworkCost, inner_teacher_passes


@dataclass(frozen=True, kw_only=True)
class Card:
    """Constants of a device: a GPU in one precision, or a CPU."""

    flops_per_s: float
    """Peak rate, by the data sheet."""
    bytes_per_s: float
    """Memory bandwidth, by the data sheet."""
    units: int
    """Multiprocessors, or cores."""
    tile: tuple[int, int]
    """Output pixels and channels of a tile of the product, the largest that a unit works on."""
    prologue: int
    """Depth that a tile loses to filling its pipeline."""
    convolution_efficiency: float
    """Fraction of the peak that the main loop of a large product reaches."""
    memory_efficiency: float
    """Fraction of the bandwidth that a kernel reaches."""
    launch_s: float
    """Idle time of the device around each operation."""
    host_operation_s: float
    """Time of the host per operation; 0 if the step is replayed as a CUDA graph."""
    host_step_s: float
    """Time of the host per step in any case."""
    element_bytes: int
    """Bytes of an activation."""
    first_layer: "Card | None" = None
    """Constants for the first layer, whose arithmetic may be finer."""


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Work of compiled code beside its convolutions, per pass, in units of all convolutions' outputs."""

    inner_passes: float
    """Times that one inner step moves the outputs of all convolutions, forward and to the pixels."""
    outer_passes: float
    """Times that a pass of the student in the outer loss moves them."""
    inner_operations: float
    """Device operations of an inner step per layer, convolutions included."""
    outer_operations: float
    """Device operations of a pass of the student in the outer loss per layer, convolutions included."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of a training step."""

    convolutions_s: float
    bytes_s: float
    launches_s: float
    host_s: float

    @property
    def device_s(self) -> float:
        return self.convolutions_s + self.bytes_s + self.launches_s

    @property
    def step_s(self) -> float:
        return max(self.device_s, self.host_s)


def product_s(card: Card, m: float, n: float, k: float) -> float:
    """Seconds of a matrix product [m, k] by [k, n] in the best of some tiles."""
    rate = card.flops_per_s * card.convolution_efficiency / card.units
    rows, columns = card.tile
    times = []
    for tile_rows, tile_columns in (
        (rows, columns),
        (rows, columns // 2),
        (rows // 2, columns // 2),
        (rows // 2, columns // 4),
    ):
        waves = math.ceil(math.ceil(m / tile_rows) * math.ceil(n / tile_columns) / card.units)
        # A smaller tile reads more operands per multiplication.
        slower = (rows * columns / (tile_rows * tile_columns)) ** 0.35
        times.append(waves * 2 * tile_rows * tile_columns * (k + card.prologue) * slower / rate)
    return min(times)


def layer_s(card: Card, layer: LayerCost, batch_size: int, direction: str) -> float:
    """Seconds of a layer's pass for a batch, without its launch.

    Args:
        card: The device.
        layer: The layer.
        batch_size: Images of the batch.
        direction: `forward`, `input` (gradient to the input) or `weight` (gradient to the weight).
    """
    is_convolution = isinstance(layer.module, nn.Conv2d)
    outputs = layer.module.out_channels if is_convolution else layer.outputs
    inputs = layer.input_shape[0] if is_convolution else layer.inputs
    flops = batch_size * layer.flops
    groups = layer.module.groups if is_convolution else 1
    if groups > 1:
        product = 0.0  # no matrix product; its bytes decide
    elif direction == "forward":
        m = batch_size * layer.outputs / outputs
        product = product_s(card, m, outputs, flops / (2 * m * outputs))
    elif direction == "input":
        m = batch_size * layer.inputs / inputs
        product = product_s(card, m, inputs, flops / (2 * m * inputs))
    else:  # the sum over pixels is split among the units
        product = flops / (card.flops_per_s * card.convolution_efficiency)
    moved = card.element_bytes * (batch_size * (layer.inputs + layer.outputs) + layer.weights)
    return max(product, moved / (card.bytes_per_s * card.memory_efficiency))


def network_s(card: Card, network: NetworkCost, batch_size: int, *directions: str) -> float:
    """Seconds of a network's layers in these directions, without launches."""
    cards = [card.first_layer or card] + [card] * (len(network.layers) - 1)
    layers = [*zip(cards, network.layers, strict=True)]
    return sum(layer_s(one, layer, batch_size, way) for one, layer in layers for way in directions)


def outputs_bytes(card: Card, network: NetworkCost, batch_size: int) -> float:
    """Bytes of the outputs of all convolutions."""
    outputs = sum(layer.outputs for layer in network.layers if isinstance(layer.module, nn.Conv2d))
    return card.element_bytes * batch_size * outputs


def predict(
    card: Card,
    overhead: Overhead,
    method: str,
    student: NetworkCost,
    teacher: NetworkCost | None,
    num_steps: int,
    policy: TeacherPolicy | None = None,
    batch_size: int = 128,
) -> Prediction:
    """Predicts one training step.

    Args:
        card: The device.
        overhead: Counts of the generated code.
        method: Name of the method.
        student: Layers of the student.
        teacher: Layers of the teacher, if the method has one.
        num_steps: Inner steps.
        policy: Teacher policy; None stands for exact.
        batch_size: Images of a batch.
    """
    through = methods.get(method).through_teacher
    teacher_forwards, teacher_backwards = inner_teacher_passes(num_steps, policy) if through else (0, 0)
    outer = OUTER_PASSES[method.partition("+")[0]]
    # (network, forward passes, passes to the input, passes to the weight, passes of inner and of outer overhead)
    trained = outer.student_trained
    train_passes = trained + outer.student_statistics
    work = [
        (student, num_steps + train_passes, num_steps + trained, trained, num_steps, train_passes),
    ]
    if teacher is not None:
        inner = (teacher_forwards + teacher_backwards) / 2
        outer_passes = (outer.teacher_forwards + outer.teacher_backwards) / 2
        forwards = teacher_forwards + outer.teacher_forwards
        work.append((teacher, forwards, teacher_backwards + outer.teacher_backwards, 0, inner + outer_passes, 0))
    convolutions = moved = operations = 0.0
    for network, forwards, to_input, to_weight, inner_passes, outer_passes in work:
        for direction, passes in (("forward", forwards), ("input", to_input), ("weight", to_weight)):
            convolutions += passes * network_s(card, network, batch_size, direction) if passes else 0.0
        num_layers = len(network.layers)
        moved += outputs_bytes(card, network, batch_size) * (
            overhead.inner_passes * inner_passes + overhead.outer_passes * outer_passes
        )
        operations += num_layers * (overhead.inner_operations * inner_passes + overhead.outer_operations * outer_passes)
    moved += 4 * MOMENTUM_PASSES * student.weights
    return Prediction(
        convolutions_s=convolutions,
        bytes_s=moved / (card.bytes_per_s * card.memory_efficiency),
        launches_s=operations * card.launch_s,
        host_s=operations * card.host_operation_s + card.host_step_s,
    )


def shifted(card: Card, factor: float) -> Card:
    """The card with efficiencies multiplied and the launches divided by a factor, for error bars."""
    return replace(
        card,
        convolution_efficiency=min(0.95, card.convolution_efficiency * factor),
        memory_efficiency=min(0.95, card.memory_efficiency * factor),
        launch_s=card.launch_s / factor,
        host_operation_s=card.host_operation_s / factor,
        first_layer=None if card.first_layer is None else shifted(card.first_layer, factor),
    )
