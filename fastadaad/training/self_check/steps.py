"""Comparison of the compiled inner loop with the eager one, and of the captured training step with the compiled one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastadaad.config import InnerConfig, Mode
from fastadaad.inner.frozen import frozen
from fastadaad.inner.maximizer import InnerMaximizer
from fastadaad.models import load_model
from fastadaad.ops.kl_grad import kl_grad_ref
from fastadaad.training.distiller import Distiller

SEED = 0
NUM_STEPS = 3
LEARNING_RATE = 0.1

# The sign of a gradient within rounding of zero may differ, and so may a few pixels.
SMALLEST_FRACTION_EQUAL = 0.95
LARGEST_KL_ERROR = 0.02
"""Relative error of the kl that a search reaches."""
EQUAL_WITHIN = 1e-5
"""Tolerance, relative to the largest value."""

Values = dict[str, Tensor]
Run = Callable[[Values], Mapping[str, Tensor]]


def compiled_difference(device: torch.device | str, compile_options: dict[str, Any] | None = None) -> str | None:
    """Describes a difference between compiled and eager inner loop, also after an update in place; None if equal."""
    student, teacher = _networks(device)
    inner = InnerConfig(num_steps=NUM_STEPS, start="natural")
    eager = InnerMaximizer(student, teacher, inner=inner, precision="fp32", mode="eager")
    compiled = InnerMaximizer(
        student, teacher, inner=inner, precision="fp32", mode="compiled", compile_options=compile_options
    )
    x_natural = _images(device)
    for moment in ("first", "after an update of the weights in place"):
        difference = _search_difference((student, teacher), compiled(x_natural), eager(x_natural))
        if difference:
            return f"{moment}: {difference}"
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.copy_(parameter.flip(0))  # the same network with other classes and features: far away
    return None


def captured_difference(device: torch.device | str, compile_options: dict[str, Any] | None = None) -> str | None:
    """Describes a difference between captured and compiled training within three steps; None if equal.

    Both are the Distiller's own steps, so what is checked is what runs.
    """
    compiled, captured = (_training(device, mode, compile_options) for mode in ("compiled", "graph"))
    inputs = {"x_natural": _images(device), "learning_rate": torch.tensor(LEARNING_RATE)}
    return difference_over_steps(compiled, captured, inputs)


def difference_over_steps(run: Run, run_captured: Run, inputs: Values) -> str | None:
    """Describes a difference between the outputs of two programs within three steps with changing inputs.

    Args:
        run: Maps inputs to outputs by name, with weights and a generator of its own.
        run_captured: The same for the captured program.
        inputs: Tensors by name; each program gets its own copy.

    Returns:
        None if the outputs are equal.
    """
    for step in range(NUM_STEPS):
        expected = {name: x.clone() for name, x in run(_copies(inputs)).items()}
        for name, output in run_captured(_copies(inputs)).items():
            fraction = fraction_equal(output, expected[name])
            if fraction < SMALLEST_FRACTION_EQUAL:
                return f"step {step + 1}: only {fraction:.1%} of {name} are equal"
        # Every value changes, to reveal a value that the capture has frozen.
        inputs = {name: 0.75 * x.flip(0) if x.dim() else 0.75 * x for name, x in inputs.items()}
    return None


def fraction_equal(x: Tensor, y: Tensor) -> float:
    """Fraction of the values that are equal within EQUAL_WITHIN; NaN equals nothing."""
    return ((x - y).abs() <= EQUAL_WITHIN * y.abs().max()).double().mean().item()


def _copies(values: Values) -> Values:
    return {name: x.clone() for name, x in values.items()}


def _search_difference(networks: Sequence[nn.Module], x_adv: Tensor, expected: Tensor) -> str | None:
    fraction = fraction_equal(x_adv, expected)
    if fraction < SMALLEST_FRACTION_EQUAL:
        return f"only {fraction:.1%} of the pixels are equal"
    reached, wanted = _mean_kl(networks, x_adv), _mean_kl(networks, expected)
    if not abs(reached - wanted) <= LARGEST_KL_ERROR * wanted:
        return f"kl {reached:.5g} reached instead of {wanted:.5g}"
    return None


def _mean_kl(networks: Sequence[nn.Module], x: Tensor) -> float:
    with frozen(*networks), torch.no_grad():
        student_logits, teacher_logits = (network(x) for network in networks)
        return kl_grad_ref(student_logits, teacher_logits, 1.0)[0].mean().item()


def _networks(device: torch.device | str) -> tuple[nn.Module, nn.Module]:
    """Builds a student and a teacher with different logits; the same at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        networks = load_model("cnn-16"), load_model("cnn-24")
    with torch.no_grad():
        for network in networks:
            *_, weight, _ = network.parameters()
            weight.mul_(20)  # last layer: the logits of new networks are nearly equal
    student, teacher = (network.to(device) for network in networks)
    return student, teacher


def _images(device: torch.device | str) -> Tensor:
    return torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(SEED)).to(device)


def _training(device: torch.device | str, mode: Mode, compile_options: dict[str, Any] | None) -> Run:
    """Returns AdaAD's step with SGD: x_natural and learning_rate -> x_adv, loss and weights."""
    student, teacher = _networks(device)
    optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE, momentum=0.9, fused=True)
    generator = torch.Generator(device).manual_seed(SEED)
    distiller = Distiller(
        student,
        teacher,
        # After two steps x_adv is inside the ball and still depends on the start.
        inner=InnerConfig(num_steps=2, start="uniform"),
        optimizer=optimizer,
        precision="fp32",
        layout="contiguous",  # a measured one may differ between the two
        mode=mode,
        compile_options=compile_options,
    )

    def run(values: Values) -> Values:
        optimizer.param_groups[0]["lr"] = values["learning_rate"].item()
        result = distiller.step(values["x_natural"], generator=generator)
        weights = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
        return {"x_adv": result.x_adv, "loss": result.loss} | weights

    return run
