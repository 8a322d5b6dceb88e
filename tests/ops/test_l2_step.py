"""l2_step_ against float64, and inside the ball and the bounds for every input."""

import pytest
import torch
from accuracy import assert_as_accurate_as_torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implementations import (
    IMPLEMENTATIONS,
    assert_registered,
    assert_versions_agree,
    every_float_dtype,
    every_implementation,
)
from pixels import assert_layouts_agree, draw, good_step_arguments, wrong_step_arguments
from torch import Tensor

from fastadaad import ops

NUMBERS = (0.3, 0.5, 0.0, 1.0)  # step_size, epsilon, lower, upper


def in_torch(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size, epsilon, lower, upper) -> Tensor:
    """Computes the step in the usual way, with torch.renorm as the projection."""
    gradient = grad_x.to(x_adv.dtype).flatten(1)
    direction = gradient / gradient.norm(dim=1, keepdim=True).clamp(min=1e-12)
    delta = x_adv.flatten(1) + step_size * direction - x_natural.flatten(1)
    projected = delta.renorm(2, 0, epsilon).view_as(x_adv)
    return torch.clamp(x_natural + projected, lower, upper)


def in_double(x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, step_size, epsilon, lower, upper) -> Tensor:
    """Computes the step sample by sample in float64."""
    results = []
    for adv, natural, gradient in zip(x_adv.double(), x_natural.double(), grad_x.double(), strict=True):
        delta = adv + step_size * gradient / max(float(gradient.pow(2).sum() ** 0.5), 1e-12) - natural
        length = float(delta.pow(2).sum() ** 0.5)
        delta = delta * epsilon / length if length > epsilon else delta
        results.append((natural + delta).clamp(lower, upper))
    return torch.stack(results) if results else x_adv.double()


def assert_accurate(run, x_adv: Tensor, x_natural: Tensor, grad_x: Tensor, *numbers: float) -> None:
    arguments = (x_adv.clone(), x_natural, grad_x, *numbers)
    run("l2_step_", x_adv, x_natural, grad_x, *numbers)
    assert_as_accurate_as_torch(x_adv, in_torch(*arguments), in_double(*arguments))


@every_implementation
@every_float_dtype
@pytest.mark.parametrize("shape", [(129, 3, 8, 8), (1, 3, 5, 7), (37, 1), (2, 3, 4, 5, 6), (2, 3, 64, 64)], ids=str)
def test_as_accurate_as_torch(run, dtype, shape):
    x_adv, x_natural, grad_x = draw(*shape)
    assert_accurate(run, x_adv, x_natural, grad_x.to(dtype), *NUMBERS)


@every_implementation
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0), (0, 0)], ids=str)
def test_without_pixels(run, shape):
    x_adv, x_natural, grad_x = draw(*shape)
    run("l2_step_", x_adv, x_natural, grad_x, *NUMBERS)
    assert x_adv.shape == shape


@every_implementation
@pytest.mark.parametrize(
    "numbers", [(0.3, 0.0, 0.0, 1.0), (0.0, 0.5, 0.0, 1.0), (9.0, 0.1, -1.0, 2.0), (0.3, 100.0, 0.25, 0.5)]
)
def test_other_radii_and_bounds(run, numbers):
    assert_accurate(run, *draw(17, 3, 8, 8), *numbers)


@every_implementation
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-13, 1e-6, 1e15])
def test_length_of_the_gradient_does_not_matter_unless_it_is_tiny(run, scale):
    x_adv, x_natural, grad_x = draw(5, 3, 8, 8)
    assert_accurate(run, x_adv, x_natural, scale * grad_x, *NUMBERS)


@every_implementation
def test_inside_the_ball_a_zero_gradient_changes_nothing(run):
    _, x_natural, grad_x = draw(5, 3, 8, 8)
    inside = (x_natural + 0.01).clamp(0, 1)
    x_adv = inside.clone()
    run("l2_step_", x_adv, x_natural, torch.zeros_like(grad_x), *NUMBERS)
    assert torch.equal(x_adv, inside)


@every_implementation
def test_a_sample_just_outside_the_ball_is_projected(run):
    _, x_natural, direction = draw(5, 3, 8, 8)
    x_natural = 0.5 * x_natural + 0.25
    lengths = 0.5 + torch.tensor([0.0, 1e-5, 1e-4, 1e-3, 1e-2])
    delta = direction * (lengths / direction.flatten(1).norm(dim=1)).view(5, 1, 1, 1)
    x_adv = x_natural + delta
    run("l2_step_", x_adv, x_natural, torch.zeros_like(x_adv), *NUMBERS)
    torch.testing.assert_close((x_adv - x_natural).flatten(1).norm(dim=1), torch.full((5,), 0.5), rtol=0, atol=2e-6)


@every_implementation
def test_layouts(run):
    def close(result, expected):
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)  # the order of summation may differ

    assert_layouts_agree(run, "l2_step_", *NUMBERS, close=close)


@every_implementation
@pytest.mark.parametrize("position", [0, 1, 2])
def test_nan_makes_its_own_sample_nan(run, position):
    tensors = draw(3, 3, 7, 7)
    clean = tensors[0].clone()
    run("l2_step_", clean, *tensors[1:], *NUMBERS)
    tensors[position][1, 2, 3, 4] = float("nan")
    run("l2_step_", *tensors, *NUMBERS)
    assert torch.equal(tensors[0][[0, 2]], clean[[0, 2]])
    assert tensors[0][1].isnan().all()


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    step_size=st.floats(0, 10, width=32),
    epsilon=st.floats(0, 5, width=32),
    lower=st.floats(-1, 0.25, width=32),
    width=st.floats(0, 2, width=32),
)
def test_stays_in_ball_and_bounds_and_a_second_projection_changes_nothing(seed, step_size, epsilon, lower, width):
    generator = torch.Generator().manual_seed(seed)
    upper = lower + width
    x_natural = lower + width * torch.rand(2, 3, 5, 5, generator=generator)
    start, grad_x = torch.randn(2, 2, 3, 5, 5, generator=generator)
    for run in IMPLEMENTATIONS:
        x_adv = start.clone()
        run("l2_step_", x_adv, x_natural, grad_x, step_size, epsilon, lower, upper)
        # One ulp per pixel is allowed: x_natural + delta is rounded.
        length = (x_adv - x_natural).double().flatten(1).norm(dim=1)
        assert (length <= epsilon * (1 + 1e-6) + 75**0.5 * 2**-23).all()
        assert (x_adv >= torch.tensor(lower)).all()
        assert (x_adv <= torch.tensor(upper)).all()
        again = x_adv.clone()
        run("l2_step_", again, x_natural, torch.zeros_like(grad_x), step_size, epsilon, lower, upper)
        torch.testing.assert_close(again, x_adv, rtol=0, atol=2**-22)


def test_versions_for_all_processors_agree_bit_for_bit():
    assert_versions_agree("l2_step_", *draw(3, 3, 7, 7), *NUMBERS)


def test_registration():
    assert_registered("l2_step_", ops.l2_step_, *draw(2, 3, 4, 4), *NUMBERS)


def test_returns_the_tensor_that_it_changes():
    x_adv, x_natural, grad_x = draw(2, 3, 4, 4)
    expected = in_torch(x_adv, x_natural, grad_x, *NUMBERS)
    assert ops.l2_step_(x_adv, x_natural, grad_x, 0.3, 0.5) is x_adv
    torch.testing.assert_close(x_adv, expected)


@wrong_step_arguments
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        ops.l2_step_(**(good_step_arguments() | change))
